"""Passes over whole token paths without a cache: the recomputed lane and the referee run here."""
