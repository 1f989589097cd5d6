"""Panes: widgets that show one thing each, given a trace and a cursor. No pane knows another."""
