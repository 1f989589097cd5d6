"""What verbs share: how commands are written, options, outputs, signals, the terminal."""
