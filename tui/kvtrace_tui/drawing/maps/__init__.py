"""Arrays as pictures: heat maps, the grid of heads, tables of numbers, and their edges."""
