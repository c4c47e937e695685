"""The program: its streams, its options, and that building it leaves the configuration alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import popart
import popdist
import pytest

from execution.engine import EngineOptions
from execution.program import build_program
from execution.weights import load_weights
from inference import random_inputs
from modelling.mapping import model_weights
from tests.small_configs import small_config
from utils.errors import UserError
from utils.random_tensors import RandomTensors


def loaded(config, trace: Path | None = None):
    """A session with weights."""
    session = build_program(config, EngineOptions(trace=trace))
    load_weights(session, model_weights(config, RandomTensors(config)))
    return session


@pytest.mark.parametrize("r", [1, 2])
@pytest.mark.parametrize("b", [1, 2])
def test_streams_have_the_sizes_of_the_configuration(r: int, b: int):
    config = small_config(tensor_parallel=r, batch=b, image_resolution=64, text_tokens=10)
    session = build_program(config)
    assert session.inputs.words.shape == (b * 10,)
    assert session.inputs.image.shape == (b, 3, 64, 64)
    assert session.outputs.logits.shape == (b * (4 + 10), 116 // r)


def test_logits_are_finite_and_cut_over_replicas(rng: np.random.Generator):
    config = small_config(tensor_parallel=2)
    session = loaded(config)
    with session:
        logits = session.run(random_inputs(session, config))[session.outputs.logits]
    assert logits.shape == (2, 13, 58)
    assert np.isfinite(logits).all()
    assert not np.array_equal(logits[0], logits[1])


def test_building_twice_leaves_the_configuration_alone():
    config = small_config(tensor_parallel=2)
    before = copy.deepcopy(config)
    first, second = build_program(config), build_program(config)
    assert config == before
    assert first.outputs.logits.shape == second.outputs.logits.shape


def test_trace_tells_the_phases_apart(tmp_path: Path):
    config, trace = small_config(layers=3), tmp_path / "trace.json"
    session = loaded(config, trace)
    with session:
        session.run(random_inputs(session, config))
    regions = {region["name"]: region for region in json.loads(trace.read_text())["regions"]}
    assert list(regions) == ["image_prefix", "embedding", "decoder", "lm_head"]
    assert regions["decoder"]["runs"] == 3


def test_engine_options_are_set_for_our_engine_only(monkeypatch: pytest.MonkeyPatch):
    def options() -> dict:
        return dict(build_program(small_config()).ir._pb_ir.getSessionOptions().engineOptions)

    assert options()["popxl_torch.arithmetic"] == "fast"
    monkeypatch.setattr(popart, "versionString", lambda: "PopART 3.4.0")
    assert not [name for name in options() if name.startswith("popxl_torch")]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("POPXL_DEVICE", "cuda:99"),
        ("POPXL_DEVICE", "nonsense"),
        ("POPXL_TORCH_BACKEND", "nonsense"),
        ("POPXL_TORCH_DEBUG", "nonsense"),
    ],
)
def test_a_device_that_is_not_there_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"for this machine: .*{value}.* POPXL_DEVICE"):
        build_program(small_config())


def test_a_launch_with_other_replicas_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(popdist, "isPopdistEnvSet", lambda: True)
    with pytest.raises(UserError, match=r"launcher started 1 replicas, but tensor_parallel is 2"):
        build_program(small_config(tensor_parallel=2))
