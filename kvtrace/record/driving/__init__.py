"""Calls somebody's model: finds out how, by its signature and by trying, and says so."""

from kvtrace.record.driving.choose import Driven, choose_drive
from kvtrace.record.driving.search import Found, Search
from kvtrace.record.driving.wish import Wish

__all__ = ["Driven", "Found", "Search", "Wish", "choose_drive"]
