"""From a factory in the user's own file to a model: found, imported, called, and judged."""
