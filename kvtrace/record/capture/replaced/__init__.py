"""What is replaced in torch, transformers and the model while watching, and put back exactly."""
