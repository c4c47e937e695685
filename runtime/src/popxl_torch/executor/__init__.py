"""Runs plans: remote memory, host streams, states, the loop, the trace."""
