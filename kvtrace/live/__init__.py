"""The child process that records, and the parent's end of the pipes to it."""
