"""What several steps tell together: texts fed again, rows left over or lost, caches of few bits."""
