"""What went into a forward: token ids or bare rows, and where they stand."""
