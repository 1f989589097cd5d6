"""Hears what runs: torch's functions in a function mode, the model's modules and methods."""
