"""Two runs of one model: where they part."""
