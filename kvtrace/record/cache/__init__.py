"""Whose rows attention was given: what every cache layer holds, and what a step did to it."""
