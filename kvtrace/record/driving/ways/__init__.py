"""The ways in which a model might be called: what its parameters are for, how its cache begins."""
