"""Keys and values in fewer bits than the model's: every kind of run stays close to the model."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops

from config.config import MagmaConfig
from execution.cache import Vectors
from execution.prompts import Picture
from execution.runs import runs_of
from tests.small_configs import TENSOR_PARALLEL, small_config
from tests.small_sessions import SIZES, open_session, pictures
from tests.tolerances import FLOAT16, INT8_KEYS_AND_VALUES, assert_close
from utils.errors import UserError

BATCH = 3


def _config(kv_dtype: str | None, tensor_parallel: int = 1) -> MagmaConfig:
    config = small_config(tensor_parallel, batch=BATCH, hidden_size=256, **SIZES)
    config.transformer.execution.kv_dtype = kv_dtype
    config.validate()
    return config


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (3, 2, 5, 64)], ids=str)
def test_vectors_come_back_as_int8_allows(rng, shape):
    given = (rng.normal(size=shape) * 10.0 ** rng.integers(-8, 4, shape[:3])[..., None]).astype(
        "f4"
    )
    given[0, 0, 0] = 0
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffers = (
            popxl.remote_buffer(shape, popxl.int8),
            popxl.remote_buffer((*shape[:3], 1), popxl.float32),
        )
        kept = Vectors(buffers, popxl.float32)
        parts = kept.pack(popxl.variable(given))
        streams = [popxl.d2h_stream(t.shape, t.dtype) for t in (*parts, kept.unpack(parts))]
        for stream, tensor in zip(streams, (*parts, kept.unpack(parts)), strict=True):
            ops.host_store(stream, tensor)
    with popxl.Session(ir, "ipu_hw") as session:
        codes, scales, found = (session.run()[stream] for stream in streams)
    largest = np.abs(given).max(axis=-1, keepdims=True)
    np.testing.assert_allclose(scales, largest / 127, rtol=1e-6, atol=1e-29)
    assert np.array_equal(np.abs(codes.astype(int)).max(axis=-1) == 127, largest[..., 0] > 0)
    assert (np.abs(found - given) <= 0.501 * scales).all()


def _every_kind_of_run(config: MagmaConfig) -> list[np.ndarray]:
    """Logits and scores, the tokens given."""
    rng = np.random.default_rng(3)
    images = pictures(rng, BATCH)
    prompts = [[Picture(n), *rng.integers(0, 106, 4 + 3 * n).tolist()] for n in range(BATCH)]
    tokens = rng.integers(0, 106, (5, BATCH)).tolist()
    with open_session(config, "cached") as session:
        runs = runs_of(session, config, pad_id=0)
        logits = [runs.start(images, prompts), *(runs.step(t) for t in tokens)]
        scores = runs.score(images, prompts, [[1, 2, 3]] * BATCH)
        runs.start(images, prompts[:1] * BATCH)  # read once for all
        shared = [runs.step(t) for t in tokens]
    return [np.stack(logits), np.stack(scores), np.stack(shared)]


@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
@pytest.mark.parametrize(
    ("kv_dtype", "tolerance"), [("int8", INT8_KEYS_AND_VALUES), ("float16", FLOAT16)]
)
def test_every_kind_of_run_stays_close(tensor_parallel: int, kv_dtype: str, tolerance: float):
    expected = _every_kind_of_run(_config(None, tensor_parallel))
    found = _every_kind_of_run(_config(kv_dtype, tensor_parallel))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, tolerance)
        assert not np.array_equal(ours, theirs), "nothing was kept in fewer bits"
    logits, wanted = found[0], expected[0]
    assert (logits.argmax(-1) == wanted.argmax(-1)).all()


def test_an_unknown_type_is_refused():
    with pytest.raises(UserError, match=r"kv_dtype is 'int4'; it must be one of float16, .* int8"):
        _config("int4")
