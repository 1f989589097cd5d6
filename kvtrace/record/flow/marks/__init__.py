"""What is known of a tensor on its way from q·kᵀ to weights·v: axes, scale, what was added."""
