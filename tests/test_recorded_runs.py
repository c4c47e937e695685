"""What a GPU would record of generation: rehearsed with tensors that claim to lie on one."""

from __future__ import annotations

import pytest

from execution.runs import runs_of
from runtime.tests.popxl_torch.stand_in_devices import rehearse
from tests.small_configs import small_config
from tests.small_sessions import SIZES, open_session, pictures

PROMPT = [5, 17, 3, 60, 8]


@pytest.mark.parametrize("tensor_parallel", [1, 4])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_decode_steps_are_recorded_and_need_nothing_of_the_host(
    tensor_parallel: int, precision: str, monkeypatch: pytest.MonkeyPatch, rng
) -> None:
    made = rehearse(monkeypatch)
    config = small_config(tensor_parallel=tensor_parallel, precision=precision, **SIZES)
    with open_session(config, "cached") as session:
        runs = runs_of(session, config, pad_id=0)
        logits = runs.start(pictures(rng, 1).astype(precision), [PROMPT])
        for _ in range(4):
            logits = runs.step(logits.argmax(-1).tolist())
    # One part: everything between the streams.
    (kernels,) = made[0].rehearsed
    assert kernels > 100
