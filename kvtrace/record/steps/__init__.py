"""From forwards to the steps of a trace, worked out, checked and written one after the other."""
