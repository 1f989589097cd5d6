"""How far a pass stands from what the cache gave: rows against rows, logits against logits."""
