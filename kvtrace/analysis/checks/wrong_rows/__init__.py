"""What q, k and v look like where they are not what they should be: one signature a file."""
