"""From marked tensors to one attention call, in our shapes, that has proved itself."""
