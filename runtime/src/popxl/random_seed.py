"""Seeds for the random ops."""

from __future__ import annotations

import numpy as np

MAX_UINT64 = 2**64 - 1


def create_seeds(
    seed: int,
    offset: int = 0,
    batches_per_step: int = 1,
    gradient_accumulation_factor: int = 1,
    replicas: int = 1,
) -> np.ndarray:
    """Seeds as uint32 pairs (high, low): (bps, gaf, replicas, 2) without the axes of size 1."""
    count = batches_per_step * gradient_accumulation_factor * replicas
    draws = np.random.default_rng(seed + offset).integers(
        0, MAX_UINT64, endpoint=True, dtype="uint64", size=count
    )
    pairs = np.array([uint64_to_two_uint32(int(draw)) for draw in draws], dtype="uint32")
    shape = [n for n in (batches_per_step, gradient_accumulation_factor, replicas) if n != 1]
    return pairs.reshape(*shape, 2)


def uint64_to_two_uint32(num: int) -> tuple[int, int]:
    """(high 32 bits, low 32 bits); ValueError outside [0, 2**64)."""
    if not 0 <= num <= MAX_UINT64:
        raise ValueError(f"{num} is not in the range of uint64.")
    return int(num) >> 32, int(num) & 0xFFFFFFFF


def two_uint32_to_uint64(a: int, b: int) -> int:
    """Inverse of :func:`uint64_to_two_uint32`; ValueError outside [0, 2**32)."""
    for part in (a, b):
        if not 0 <= part <= 0xFFFFFFFF:
            raise ValueError(f"{part} is not in the range of uint32.")
    return (int(a) << 32) | int(b)
