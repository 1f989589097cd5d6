"""What a model was when a text began, beside what it was given: its copy, attributes, globals."""
