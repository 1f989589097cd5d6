"""Two lanes of one run: how far they are apart, and where they part."""
