"""The Textual app: a recorded run on the screen. Knows traces and analysis, never models."""
