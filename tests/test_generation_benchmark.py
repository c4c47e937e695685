"""What the benchmarks of generation stand on: workers, turns, bytes, engines that agree."""

from __future__ import annotations

import os
from contextlib import closing
from fractions import Fraction
from itertools import count

import pytest

from benchmarks import bench_generation, generation_parts, machine, turns
from benchmarks.engine_eager import Eager
from benchmarks.engine_llama import _shapes
from benchmarks.engine_ours import Ours
from benchmarks.engines import model_slice, random_prompts, step_bytes
from benchmarks.generation_peers import ENGINES, Entry, missing
from benchmarks.turns import ratio, take_turns
from benchmarks.workers import Worker
from config.parsing import load_preset
from utils.checkpoint_layout import expected_tensors


def test_a_worker_keeps_its_object_and_its_environment(monkeypatch):
    monkeypatch.delenv("OF_A_WORKER", raising=False)
    with Worker("collections:Counter", "aab") as counter:
        counter.call("update", "b")
        assert counter.call("most_common") == [("a", 2), ("b", 2)]
    with Worker("os:getenv", "OF_A_WORKER", environment={"OF_A_WORKER": "seen"}) as text:
        assert text.call("upper") == "SEEN"
    assert "OF_A_WORKER" not in os.environ


def test_an_error_in_a_worker_is_told_and_the_worker_goes_on():
    with Worker("fractions:Fraction", 1, 2) as half:
        with pytest.raises(RuntimeError, match=r"worker process:\n(.|\n)*AttributeError"):
            half.call("no_such_method")
        assert half.call("__add__", Fraction(1, 4)) == Fraction(3, 4)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        Worker("fractions:Fraction", 1, 0)


def test_engines_take_turns_framed_by_tests_of_the_machine(monkeypatch):
    numbers = count(1)
    monkeypatch.setattr(
        turns.machine, "measure_rates", lambda repeats: machine.Rates(next(numbers), 0.0)
    )
    order: list[str] = []
    found = take_turns({name: lambda n=name: order.append(n) or len(order) for name in "ab"}, 2)
    assert order == ["a", "b", "a", "b"]
    assert found.values("b", float) == [2.0, 4.0]
    assert [turn.read_gb_per_s for turn in found.of["b"]] == [2.5, 4.5]
    assert [rate.read_gb_per_s for rate in found.frame()] == [1, 5]


def test_a_ratio_is_the_median_of_the_rounds():
    assert ratio([2.0, 9.0, 8.0], [1.0, 3.0, 1.0]) == 3.0


def test_bytes_of_a_step_are_those_of_the_matrices_and_the_cache():
    config = model_slice("tiny", 2, 40, tensor_parallel=1, batch=3)
    matrices = sum(
        4 * entry.shape[0] * entry.shape[1]
        for name, entry in expected_tensors(config).items()
        if name.startswith("lm.") and "wte" not in name and name.endswith("weight")
        if len(entry.shape) == 2
    )
    assert step_bytes(config, 0) == matrices
    assert step_bytes(config, 10) - matrices == 4 * 3 * 10 * 2 * 2 * 64
    assert step_bytes(config, 0) - step_bytes(config, 0, adapters=False) == 4 * 2 * 2 * 64 * 16


def test_the_file_for_llama_has_as_many_weights_as_gptj():
    config = load_preset("magma_v1_500")
    mine = sum(shape[0] * shape[1] for name, shape in _shapes(config).items() if len(shape) == 2)
    without_adapters = step_bytes(config, 0, adapters=False) // 2
    assert mine == without_adapters + config.transformer.embedding.vocab_size * 4096


def test_what_is_not_installed_is_named():
    assert missing(Entry("x", print, ("json", "no_such_package")), None) == ["no_such_package"]
    assert missing(ENGINES["ours"], None) == []


def test_the_eager_model_and_ours_choose_the_same_ids():
    config = generation_parts.tiny(1)
    prompts = random_prompts(config, 9, seed=5)
    eager = Eager(config).run(prompts, 12, picture=False)
    with closing(Ours(config, None, traced=False)) as engine:
        ours = engine.run(prompts, 12, picture=False)
    assert eager.ids == ours.ids
    assert len(eager.ids[0]) == 12
    assert len(eager.step_s) == len(ours.step_s) == 11


@pytest.mark.long
def test_the_comparison_of_ids_finds_no_difference(monkeypatch, tmp_path):
    command = ["x", "--short", "--prompts", "2", "--preset", "tiny", "--folder", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    ((result, _),) = generation_parts.equal(bench_generation.setup_of(bench_generation.parse()))
    assert {row[1] for row in result.rows} == {"2 of 2"}
