"""What a GPU would record of generation: rehearsed with tensors that claim to lie on one."""

from __future__ import annotations

import pytest
from popxl_torch.executor import engine
from popxl_torch.kernels import attention, linalg, rotary

from execution.runs import runs_of
from runtime.tests.popxl_torch.stand_in_devices import Rehearsal
from tests.small_configs import small_config
from tests.small_sessions import SIZES, open_session, pictures

PROMPT = [5, 17, 3, 60, 8]


@pytest.mark.parametrize("tensor_parallel", [1, 4])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_decode_steps_are_recorded_and_need_nothing_of_the_host(
    tensor_parallel: int, precision: str, monkeypatch: pytest.MonkeyPatch, rng
) -> None:
    for module in (attention, linalg, rotary):  # C++ has no use for tensors without contents
        monkeypatch.setattr(module, "native", lambda: None)
    made: list[Rehearsal] = []

    def make(settings, replicas: int) -> Rehearsal:
        made.append(Rehearsal(settings, replicas))
        return made[-1]

    monkeypatch.setattr(engine, "make_backend", make)
    config = small_config(tensor_parallel=tensor_parallel, precision=precision, **SIZES)
    with open_session(config, "cached") as session:
        runs = runs_of(session, config, pad_id=0)
        logits = runs.start(pictures(rng, 1).astype(precision), [PROMPT])
        for _ in range(4):
            logits = runs.step(logits.argmax(-1).tolist())
    # One part: everything between the streams.
    (kernels,) = made[0].rehearsed
    assert kernels > 100
