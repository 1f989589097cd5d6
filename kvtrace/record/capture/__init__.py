"""Sees the forwards of a model: each becomes one `Forward` of tensors, and nothing is kept."""
