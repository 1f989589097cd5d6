"""Rounding or bug, where it starts and which bug: from the rows of both lanes alone."""
