"""Names on the command line that need no numpy to know."""

TENSORS = ("queries", "keys", "values", "output", "weights")
