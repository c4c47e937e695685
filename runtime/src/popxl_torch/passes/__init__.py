"""From PopXL's graphs to a functional program, and rewrites of it. No torch."""
