"""Measurements: each bench_*.py runs alone (python -m benchmarks.bench_x) and prints its table."""
