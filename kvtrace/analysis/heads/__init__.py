"""One head: its rows in any tensor and lane, its weights, and numbers of both."""
