"""Calls somebody's model: finds out how, by its signature and by trying, and says so."""

from kvtrace.record.driving.choose import (
    Driven,
    afresh,
    as_transformers,
    called_as_transformers,
    choose_drive,
)
from kvtrace.record.driving.trying.found import FoundWay
from kvtrace.record.driving.trying.search import Search
from kvtrace.record.driving.wish import Wish

__all__ = [
    "Driven",
    "FoundWay",
    "Search",
    "Wish",
    "afresh",
    "as_transformers",
    "called_as_transformers",
    "choose_drive",
]
