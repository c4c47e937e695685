"""PopART's own session on an Ir, and its weights by id."""

from __future__ import annotations

from typing import Any

import numpy as np
import popart
import popxl
import pytest
from popxl import ops


@pytest.fixture
def program() -> dict[str, Any]:
    """y = x + n, then n += 1, with streams x and y."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x = popxl.h2d_stream((2,), popxl.float32, "x")
        y = popxl.d2h_stream((2,), popxl.float32, "y")
        n = popxl.variable(np.zeros(2, np.float32), name="n")
        ops.host_store(y, ops.host_load(x) + n)
        n += 1.0
    return {"ir": ir, "n": n}


def test_steps(program: dict[str, Any], rng: np.random.Generator):
    session = popart.InferenceSession.fromIr(program["ir"]._pb_ir, popart.DeviceInfo())
    data = rng.normal(size=2).astype(np.float32)
    outputs = session.initAnchorArrays()
    step = popart.PyStepIO({"x": data}, outputs)
    with pytest.raises(ValueError, match="attached"):
        session.run(step)
    session.prepareDevice()
    session.run(step)
    np.testing.assert_array_equal(outputs["y"], data)
    session.run(step)
    np.testing.assert_array_equal(outputs["y"], data + np.float32(1))
    session.weightsFromHost()
    session.run(step)
    np.testing.assert_array_equal(outputs["y"], data)
    session.weightsToHost()
    np.testing.assert_array_equal(program["n"]._value.data.host, [1, 1])
    with pytest.raises(KeyError):
        session.run(popart.PyStepIO({"z": data}, outputs))


def test_made_by_its_class_method():
    with pytest.raises(TypeError, match="fromIr"):
        popart.InferenceSession()


def test_weights_by_id(program: dict[str, Any], rng: np.random.Generator):
    session = popxl.Session(program["ir"], "ipu_hw")
    data, found = rng.normal(size=2).astype(np.float32), np.empty(2, np.float32)
    session._pb_session.writeWeights(popart.PyWeightsIO({"n": data}))
    session._pb_session.readWeights(popart.PyWeightsIO({"n": found}))
    np.testing.assert_array_equal(found, data)
    np.testing.assert_array_equal(session.get_tensor_data(program["n"]), data)
    with pytest.raises(popart.popart_exception):
        session._pb_session.writeWeights(popart.PyWeightsIO({"nothing": data}))


def test_there_is_no_report(program: dict[str, Any]):
    with pytest.raises(popart.popart_exception, match="no report"):
        popxl.Session(program["ir"], "ipu_hw")._pb_session.getReport()


def test_enums_of_options(program: dict[str, Any]):
    options = program["ir"]._pb_ir.getSessionOptions()
    assert options.virtualGraphMode is popart.VirtualGraphMode.Manual
    assert options.syntheticDataMode is popart.SyntheticDataMode.Off
