"""Ops that update variables in place, for optimizers."""

__all__ = []
