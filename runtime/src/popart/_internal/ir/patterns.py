"""Choices of graph rewrites."""

from popart._internal.ir._records import Patterns, PatternsLevel

__all__ = ["Patterns", "PatternsLevel"]
