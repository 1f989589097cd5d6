"""Choices of experts and slots: other lanes are held to the cached one's where rounding decides."""
