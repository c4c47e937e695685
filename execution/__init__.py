"""Phases, weights and programs: how the layers become one program, and the loops around it."""
