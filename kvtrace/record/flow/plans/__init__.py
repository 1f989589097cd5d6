"""How the tensors of one attention are arranged: worked out once, used at every later step."""
