"""The benchmark of GPUs: it says what it cannot measure, and reckons right where it could."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import bench_generation, bench_memory, gpu
from benchmarks.gpu import GpuRates, GpuSteps, Turn

PLAN = {
    "phases": [
        {"name": "image_prefix", "slabs": 1, "bytes": 7, "streamed_bytes": 7},
        {"name": "decoder", "slabs": 4, "bytes": 8 * 10**9, "streamed_bytes": 5 * 10**9},
        {"name": "lm_head", "slabs": 1, "bytes": 10**9, "streamed_bytes": 10**9},
    ],
    "slot_bytes": 2 * 10**9,
    **dict.fromkeys(("process_bytes", "activation_bytes", "stored_bytes", "scratch_bytes"), 10**8),
}
RATES = GpuRates(pinned=50.0, pageable=10.0, memory=4000.0, tflops=700.0, launch_us=2.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize(
    ("program", "parts"),
    [(bench_generation, 1), (bench_memory, 4)],
)
def test_without_a_gpu_every_part_says_so(
    program, parts: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(sys, "argv", ["bench", "--device", "cuda"])
    program.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == parts
    assert all(line.endswith(gpu.NOT_MEASURED) for line in lines)


def test_the_share_of_the_link_is_what_its_rate_allows_over_what_was_taken():
    of = [Turn(GpuSteps([0.15], 0, PLAN), RATES, RATES)]
    assert gpu._link_share(of, "pinned") == "0.80"  # 6 GB at 50 GB/s: 0.12 s
    assert gpu._link_share(of, "pinned", 48.0) == "0.83"
    assert gpu._link_share([Turn(GpuSteps([0.15], 0), RATES, RATES)], "pinned") == "-"


def test_the_least_budget_is_two_slots_of_the_largest_slab():
    assert gpu.least_budget(PLAN) == 4 * 10**8 + 2 * 2 * 10**9


@pytest.fixture
def options(tmp_path: Path) -> Namespace:
    sizes = {"preset": "tiny", "blocks": 1, "rounds": 2, "tokens": 2}
    return Namespace(**sizes, folder=tmp_path, threads=1, keep=False)


def test_every_part_makes_a_table(options: Namespace, monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "measure_rates": lambda: RATES,
        "ours": lambda *_, **settings: GpuSteps([0.2, 0.1, 0.3], 1 << 30, PLAN),
        "peer": lambda *_, **settings: GpuSteps([0.4], 1 << 30),
        "read_gb_per_s": lambda files: 5.0,
        "direct_read_gb_per_s": lambda files: 6.0,
    }.items():
        monkeypatch.setattr(gpu, name, value)
    setup = gpu._setup_of(options)
    for name, part in gpu.PARTS.items():
        made = part(setup)
        result = gpu._result(name, made, setup, "bench", "no GPU")
        assert all(len(row) == len(made.columns) for row in made.rows)
        assert len(made.rows) == len(made.turns) == len(result.samples) > 1
        assert len(gpu._frame(made)) == 2
        if name == "streamed":
            assert made.rows[0] == ("ours", "5.00", "200.00", "1.00", "0.60", "1.00")


@pytest.mark.long
def test_our_engine_tells_its_steps_and_its_plan(
    options: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """On the CPU, which changes what is measured and nothing else."""
    monkeypatch.setenv(gpu.PLAN_VARIABLE, str(tmp_path / "plan.json"))
    setup = gpu._setup_of(options)
    config = gpu._config(setup)
    engine = gpu.OnGpu(config, setup.model_folder("float16"))
    try:
        steps = engine.steps(gpu.random_prompts(config, 5), 3)
    finally:
        engine.close()
    assert len(steps.step_s) == 3
    assert steps.weights("resident", "streamed", "mapped") > 0
