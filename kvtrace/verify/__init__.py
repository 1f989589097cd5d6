"""Checks a model: drives it in the ways in which caches break, records each, and judges it."""
