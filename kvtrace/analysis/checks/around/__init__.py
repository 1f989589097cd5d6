"""What surrounds a finding: causes beside it, later steps, doubt, the whole run in sum."""
