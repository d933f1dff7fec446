"""System checks: what is wrong with a declaration, its settings or its database, and the cure."""

from embedsync.checks import choice, databases, declarations, indexes

__all__ = ["choice", "databases", "declarations", "indexes"]
