"""Caches of the model's own, of no class we know: followed by the rows that attention was given."""
