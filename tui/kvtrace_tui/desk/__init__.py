"""What the user is doing, without a screen: where they look, what a key does to it, and why not."""
