"""Trying ways on private copies, and watching the author's own calls."""
