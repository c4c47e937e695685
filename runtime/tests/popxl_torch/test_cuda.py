"""What a GPU changes: plans that load weights, on the null backend; numbers, where there is one."""

from __future__ import annotations

import logging

import numpy as np
import popxl
import pytest
import torch
from popxl import ops

from runtime.tests.popxl_torch.random_programs import draw_program, run_program

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def layered(layers: int = 3) -> tuple[popxl.Ir, popxl.HostToDeviceStream]:
    """x -> x @ w[i] for entry after entry of a remote buffer, in a loop."""
    ir = popxl.Ir()
    rng = np.random.default_rng(0)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((8, 8), popxl.float16, layers)
        for entry in range(layers):
            weight = rng.normal(size=(8, 8)).astype(np.float16)
            popxl.remote_variable(weight, buffer, entry)
        stream = popxl.h2d_stream((2, 8), popxl.float16)

        def step(x: popxl.Tensor, entry: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            return x @ ops.remote_load(buffer, entry), entry + 1

        x, entry = ops.host_load(stream), popxl.constant(0, popxl.int32)
        body = ir.create_graph(step, x, entry)
        y, _ = ops.repeat(body, layers, x, entry)
        ops.host_store(popxl.d2h_stream(y.shape, y.dtype), y)
    return ir, stream


def source_of_the_plan(caplog: pytest.LogCaptureFixture, device: str) -> str:
    """The function that is written for the plan of ``layered`` on a device, without running it."""
    ir, stream = layered()
    options = ir._pb_ir.getSessionOptions().engineOptions
    options["popxl_torch.backend"] = "null"
    options["popxl_torch.device"] = device
    options["popxl_torch.debug"] = "3"
    caplog.clear()
    with (
        caplog.at_level(logging.WARNING, "popxl_torch"),
        popxl.Session(ir, "ipu_model") as session,
    ):
        session.run({stream: np.zeros((2, 8), np.float16)})
    message = next(r.getMessage() for r in reversed(caplog.records) if "def run" in r.getMessage())
    return message[message.index("def run") :]


def test_a_device_with_memory_of_its_own_loads_what_a_cpu_sees(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On a CPU the weights of all layers are a table; a GPU fetches an entry in each iteration."""
    on_cpu, on_gpu = (source_of_the_plan(caplog, device) for device in ("cpu", "cuda:0"))
    assert "RemoteLoad" not in on_cpu
    assert on_gpu.count("RemoteLoad") == 1
    assert on_gpu.index("for ") < on_gpu.index("RemoteLoad")


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("seed", range(6))
def test_random_programs_agree_with_the_cpu(seed: int, replicas: int) -> None:
    rng = np.random.default_rng([seed, replicas])
    program = draw_program(rng, length=14, replicas=replicas)
    shape = (replicas, 4, 4)
    arrays = {
        "stream": rng.uniform(-1, 1, shape).astype("float32"),
        "shared": rng.uniform(-1, 1, (4, 4)).astype("float32"),
        "own": rng.uniform(-1, 1, shape).astype("float32"),
    }
    expected = run_program(program, arrays, {"device": "cpu"})
    found = run_program(program, arrays, {"device": "cuda"})
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-4, err_msg=str(program))


@needs_gpu
@pytest.mark.gpu
def test_weights_in_remote_memory_are_fetched() -> None:
    results = []
    for device in ("cpu", "cuda"):
        ir, stream = layered()
        ir._pb_ir.getSessionOptions().engineOptions["popxl_torch.device"] = device
        with popxl.Session(ir, "ipu_model") as session:
            results += session.run({stream: np.ones((2, 8), np.float16)}).values()
    np.testing.assert_allclose(results[1], results[0], rtol=2e-2, atol=2e-2)
