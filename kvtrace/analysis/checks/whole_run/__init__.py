"""What several steps tell together: texts fed again, rows left over, later causes, the survey."""
