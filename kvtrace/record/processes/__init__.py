"""Several processes that share one model: which this is, what it holds, if others go on."""
