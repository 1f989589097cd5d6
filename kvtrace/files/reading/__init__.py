"""A trace file read lazily: frames found, checked, and given back as rows."""
