"""What a step cost, and what the same tokens cost without a cache: FLOPs, bytes, time."""
