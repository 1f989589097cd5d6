"""What a model was given, kept so that it can be given again over whole token paths."""
