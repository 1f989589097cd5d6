"""The rows that one site is given, from step to step: which are new, kept, moved or gone."""
