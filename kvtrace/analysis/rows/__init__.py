"""Rows of a cache: where each comes from, who wrote it, and what a step did to it."""
