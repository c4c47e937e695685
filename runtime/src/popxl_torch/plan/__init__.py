"""Flat plans: what an executor does, step by step. No torch."""
