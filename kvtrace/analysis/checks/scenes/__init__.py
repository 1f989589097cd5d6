"""What one attention saw in both lanes, laid side by side, and which row is which token's."""
