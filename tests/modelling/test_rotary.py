"""Rotary positions: angles in high precision, rounded to the model's precision once."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
import pytest
from popxl_addons.ops.rotary_pos_embed import trig_tables

from config.config import MAX_POSITIONS, GPTJAttentionConfig, GPTJConfig, GPTJExecution, Precision
from modelling.gptj.attention import AttentionHeads
from modelling.gptj.positions import whole_sequences
from tests.modelling.one_module import equal_on_all, on_all, run_module
from tests.tolerances import ROTARY_FLOAT16, ROTARY_FLOAT32

HEAD_SIZE, ROTARY_DIM = 80, 64  # channels 64 to 79 of a head carry no position
ALLOWED = {"float32": ROTARY_FLOAT32, "float16": ROTARY_FLOAT16}


class Rotation(addons.Module):
    """What attention does to queries and keys before they meet."""

    def __init__(self, config: GPTJConfig):
        super().__init__()
        self.heads = AttentionHeads(config)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Rotates (1, s, n, d)."""
        return self.heads._rotate(x, whole_sequences(self.heads.config, x.shape[1]))


def exact_angles() -> np.ndarray:
    """[s, rotary_dim / 2] in float64."""
    rates = 10000.0 ** (-np.arange(0, ROTARY_DIM, 2) / ROTARY_DIM)
    return np.arange(MAX_POSITIONS)[:, None] * rates


@pytest.mark.parametrize("precision", ALLOWED)
def test_a_model_turns_by_exact_angles(precision):
    """(1, 0) turned by an angle is (cos, sin): the tables, as the model applies them."""
    config = GPTJConfig(
        hidden_size=2 * HEAD_SIZE,
        precision=Precision(precision),
        attention=GPTJAttentionConfig(heads=2, rotary_dim=ROTARY_DIM),
        execution=GPTJExecution(tensor_parallel=1),
    )
    x = np.zeros((1, MAX_POSITIONS, 2, HEAD_SIZE), precision)
    x[..., ::2] = 1
    turned = equal_on_all(run_module(lambda: Rotation(config), [on_all(x, 1)], {}))[0]
    assert turned.dtype == precision
    for head in range(2):
        rotated = turned[:, head, :ROTARY_DIM].astype(np.float64)
        assert np.abs(rotated[:, ::2] - np.cos(exact_angles())).max() <= ALLOWED[precision]
        assert np.abs(rotated[:, 1::2] - np.sin(exact_angles())).max() <= ALLOWED[precision]
        np.testing.assert_array_equal(turned[:, head, ROTARY_DIM:], x[0, :, head, ROTARY_DIM:])


def test_tables_made_in_half_precision_would_fail():
    """The tolerance tells the two ways of making the tables apart."""
    sin, cos = trig_tables(MAX_POSITIONS, ROTARY_DIM, 10000, np_dtype="float16")
    assert np.abs(sin - np.sin(exact_angles())).max() > 100 * ROTARY_FLOAT16
    assert np.abs(cos - np.cos(exact_angles())).max() > 100 * ROTARY_FLOAT16
