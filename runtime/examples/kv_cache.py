"""Decoding with keys and values kept in remote memory, one entry per layer.

Each run takes one token and its position. Every layer loads its cache, writes one row, stores it
back; positions that are not filled yet are masked. Compared with attention over the whole text.
"""

import numpy as np
import popxl
from popxl import ops

LAYERS, WIDTH, LENGTH = 2, 8, 7


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention, the slow way."""
    scores = q @ k.T / np.sqrt(WIDTH)
    scores[np.triu_indices(len(q), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ v


def build(ir: popxl.Ir, qkv: np.ndarray) -> tuple[popxl.streams.Stream, ...]:
    """The decoder with weights ``qkv``; returns its streams: token, place, result."""
    with ir.main_graph, popxl.in_sequence():
        weights = popxl.remote_buffer((3, WIDTH, WIDTH), popxl.float32, entries=LAYERS)
        for i, weight in enumerate(qkv):
            popxl.remote_variable(weight, weights, i)
        cache = popxl.remote_buffer((2, LENGTH, WIDTH), popxl.float32, entries=LAYERS)
        token = popxl.h2d_stream((1, WIDTH), popxl.float32)
        places = popxl.h2d_stream((1,), popxl.int32)
        out = popxl.d2h_stream((1, WIDTH), popxl.float32)

        def layer(x: popxl.Tensor, i: popxl.Tensor, place: popxl.Tensor):
            q, k, v = (
                x @ w.reshape((WIDTH, WIDTH)) for w in ops.split(ops.remote_load(weights, i), 3)
            )
            row = ops.concat([k, v]).reshape((2, 1, WIDTH))
            kept = ops.remote_load(cache, i)
            kept = ops.dynamic_update_(kept, place, row, axes=[1], sizes=[1], no_overlap=True)
            ops.remote_store(cache, i, kept)
            keys, values = (t.reshape((LENGTH, WIDTH)) for t in ops.split(kept, 2))
            later = ops.greater(popxl.constant(np.arange(LENGTH), popxl.int32), place)
            scores = (q @ keys.T) * (WIDTH**-0.5)
            scores = ops.where(later, popxl.constant(-1e9), scores)
            return x + ops.softmax(scores, axis=-1) @ values, i + 1

        x, place = ops.host_load(token), ops.host_load(places)
        zero = popxl.constant(0, popxl.int32)
        x, _ = ops.repeat(ir.create_graph(layer, x, zero, place), LAYERS, x, zero, place)
        ops.host_store(out, x)
    return token, places, out


def main() -> None:
    """Feeds a text token by token."""
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(LAYERS, 3, WIDTH, WIDTH)).astype("float32") * 0.5
    ir = popxl.Ir()
    token, places, out = build(ir, qkv)
    text = rng.normal(size=(LENGTH, WIDTH)).astype("float32")
    with popxl.Session(ir, "ipu_hw") as session:
        rows = [
            session.run({token: text[n : n + 1], places: np.array([n], "int32")})[out]
            for n in range(LENGTH)
        ]
    expected = text
    for wq, wk, wv in qkv:
        expected = expected + attend(expected @ wq, expected @ wk, expected @ wv)
    np.testing.assert_allclose(np.concatenate(rows), expected, rtol=1e-4, atol=1e-5)
    print(rows[-1])


if __name__ == "__main__":
    main()
