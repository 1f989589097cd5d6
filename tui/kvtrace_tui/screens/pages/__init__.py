"""Pages over the main screen: lists to choose from, trees, code, memory, and many lines."""
