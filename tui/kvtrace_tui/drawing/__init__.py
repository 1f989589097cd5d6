"""Pure drawing: arrays, words and a size in; lines for the terminal out. Knows no widgets."""
