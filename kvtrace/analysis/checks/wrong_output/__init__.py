"""What attention did to right rows: who sees whom, the scores, the sums, the precision."""
