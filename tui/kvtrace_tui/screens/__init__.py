"""Screens: panes put together, keys handed out."""
