"""Calls somebody's model: finds out how, by its signature and by trying, and says so."""

from kvtrace.record.driving.choose import Driven, Wish, choose_drive
from kvtrace.record.driving.search import Found, Search

__all__ = ["Driven", "Found", "Search", "Wish", "choose_drive"]
