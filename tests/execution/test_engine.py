"""Options of our engine, and what they change: memory and files, never a logit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import popart
import pytest

import run_inference
from execution.engine import EngineOptions, check_budget
from execution.magma import Magma
from execution.program import build_program
from execution.report import human
from runtime.tests.popxl_torch.stand_in_devices import standing_in
from tests.small_configs import small_config
from tests.small_sessions import SIZES
from utils.checkpoint import open_checkpoint
from utils.checkpoint_writer import write_random_checkpoint
from utils.errors import UserError
from utils.model_folder_rows import Storage, planned_tensors
from utils.model_folder_writer import write_model_folder


def _folder(
    tmp_path: Path, storage: str, tensor_parallel: int = 1, kv_dtype: str | None = None
) -> Path:
    tmp_path.mkdir(exist_ok=True)
    config = small_config(tensor_parallel, "float16", hidden_size=256, rotary_dim=8, **SIZES)
    config.transformer.execution.kv_dtype = kv_dtype
    write_random_checkpoint(tmp_path / "model.pt", config, seed=3, dtype="float16")
    parts = ("blocks", "adapters", "head") if storage != "float16" else ()
    folder = tmp_path / "folder"
    write_model_folder(
        open_checkpoint(tmp_path / "model.pt", config), config, folder, Storage(storage, parts)
    )
    return folder


def _logits(folder: Path, plan: Path | None = None, **options: object) -> np.ndarray:
    magma = Magma.from_pretrained(folder, max_batch=2, trace=plan, **options)
    with magma:
        answers = magma.generate(
            np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8),
            ["A", "BC"],
            temperature=0,
            max_new_tokens=3,
            min_new_tokens=3,
            output_logits=True,
        )
    return np.stack([answer.logits for answer in answers])


@pytest.mark.parametrize("storage", ["float16", "int8", "int4"])
def test_a_model_within_a_budget_gives_the_same_bits(tmp_path: Path, storage: str):
    folder = _folder(tmp_path, storage)
    expected = _logits(folder)
    np.testing.assert_array_equal(_logits(folder, weights="read"), expected)


def _stored(folder: Path, plan: Path, **options: object) -> tuple[np.ndarray, dict]:
    """Logits, and what the plan says of keys and values."""
    plan.mkdir()
    logits = _logits(folder, plan, **options)
    content = json.loads((plan / "memory_2.json").read_text())
    return logits, {row["name"]: row for row in content["stored"]}["decoder"] | content


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_keys_and_values_off_the_device_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kv_dtype: str | None
):
    # What the process has besides is not the same from one session to the next.
    monkeypatch.setattr("popxl_torch.executor.placement.anonymous_bytes", lambda: 0)
    folder = _folder(tmp_path, "float16", kv_dtype=kv_dtype)
    expected, plan = _stored(folder, tmp_path / "all")
    assert plan["resident_slabs"] == plan["slabs"] == 2
    least = plan["peak_bytes"] - plan["stored_bytes"]
    for budget, layers in ((least, 0), (plan["peak_bytes"] - 1, 1)):
        found, row = _stored(folder, tmp_path / str(layers), device_memory=budget)
        assert row["resident_slabs"] == layers
        assert row["peak_bytes"] <= budget
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_keys_and_values_on_the_host_beside_a_device_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kv_dtype: str | None
):
    folder = _folder(tmp_path, "float16", kv_dtype=kv_dtype)
    expected, _ = _stored(folder, tmp_path / "cpu")
    with standing_in(monkeypatch):
        found, plan = _stored(folder, tmp_path / "all")
    np.testing.assert_array_equal(found, expected)
    assert plan["resident_slabs"] == plan["slabs"] == 2
    # Weights stream, and at first all keys and values are copied.
    budget, layers = plan["peak_bytes"] - plan["stored_bytes"], []
    budget -= sum(phase["resident_bytes"] for phase in plan["phases"])
    largest = max(phase["resident_bytes"] for phase in plan["phases"])
    for extra in (0, plan["bytes"]):
        size = budget + largest + extra
        with standing_in(monkeypatch) as made:
            found, row = _stored(folder, tmp_path / str(extra), device_memory=size)
        np.testing.assert_array_equal(found, expected)
        assert row["peak_bytes"] <= size
        assert made[-1].brought
        layers.append(row["resident_slabs"])
    assert layers == [0, 1]


def test_keys_and_values_in_int8_take_half(tmp_path: Path):
    rows = [
        _stored(_folder(tmp_path / name, "float16", kv_dtype=kept), tmp_path / f"plan{name}")[1]
        for name, kept in (("a", None), ("b", "int8"))
    ]
    codes_and_scales = (64 + 4) / (2 * 64)  # 64 channels a head
    assert rows[1]["bytes"] == codes_and_scales * rows[0]["bytes"]


def test_a_budget_is_kept_or_refused_with_what_is_needed(tmp_path: Path):
    folder = _folder(tmp_path, "float16")
    with pytest.raises(UserError, match=r"at least [\d,]+ are needed"):
        _logits(folder, weights="read", device_memory="1MiB")


@pytest.mark.parametrize(
    "budget",
    [
        *("0", 0, "-1", -5, "2GX", "", " ", "-5GiB", "0GiB", "0.5", "1e400", "nan", "inf", "2gib"),
        *("1_0", "२GiB", "²GiB", "1,5GiB", "AUTO", "9" * 5000, "99999999999GiB", 1 << 63),
    ],
)
def test_a_budget_that_is_none_is_refused(budget: str | int):
    with pytest.raises(UserError, match=r"such as 2GiB .*, or auto") as caught:
        check_budget(budget)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("budget", "found"),
    [(None, None), ("auto", "auto"), (7, 7), ("7", 7), ("1.5GiB", 3 << 29), (" 2 MiB ", 2 << 20)],
)
def test_budgets_are_bytes(budget: str | int | None, found: str | int | None):
    assert check_budget(budget) == found


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_said_before_weights_are_looked_for(device: str):
    with pytest.raises(UserError, match=f"'{device}' was asked for"):
        Magma.of_config(small_config(), Path("nowhere"), device=device)


def test_other_engines_are_not_asked_for_a_device_twice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(popart, "versionString", lambda: "PopART 3.4.0")
    monkeypatch.setattr("popxl.Session", None)
    EngineOptions().check()
    with pytest.raises(UserError, match="IPUs only"):
        EngineOptions(device="cpu").check()


def test_other_engines_have_no_such_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(popart, "versionString", lambda: "PopART 3.4.0")
    build_program(small_config(), EngineOptions(trace=tmp_path / "trace.json"))
    for option in ({"device_memory": "2GiB"}, {"weights": "read"}, {"device": "cpu"}):
        with pytest.raises(UserError, match=f"{next(iter(option))} is .* IPUs only"):
            build_program(small_config(), EngineOptions(**option))


def test_weights_that_are_gone_are_one_line(tmp_path: Path):
    folder = _folder(tmp_path, "float16")
    magma = Magma.from_pretrained(folder, weights="read")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with magma, pytest.raises(UserError, match=r"safetensors: cannot read the weights: No such"):
        magma.generate(None, "A")


@pytest.mark.parametrize("weights", ["mapped", "read"])
def test_a_file_that_is_cut_between_tokens_is_one_line_and_the_text_is_kept(
    tmp_path: Path, weights: str
):
    folder = _folder(tmp_path, "float16")
    with Magma.from_pretrained(folder, weights=weights, max_batch=1) as magma:
        stream = magma.stream(None, "A", min_new_tokens=6, max_new_tokens=6, temperature=0)
        first = str(next(stream))
        for path in folder.glob("*.safetensors"):
            os.truncate(path, 4096)
        with pytest.raises(UserError, match=r"safetensors: .* the file has become shorter: 4,096"):
            list(stream)
    assert stream.answers[0].text.startswith(first)


def test_a_disk_that_fails_is_one_line_and_the_model_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    magma = Magma.from_pretrained(_folder(tmp_path, "float16"), weights="read", max_batch=1)
    with magma:
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", fail)
            with pytest.raises(UserError, match=r"cannot read the weights: Input/output error"):
                magma.generate(None, "A")
        assert magma.generate(None, "A")[0].finish_reason


def test_the_plan_needs_no_weights(capsys: pytest.CaptureFixture[str]):
    argv = ["--config", "tiny", "--plan_only", "--weights", "read", "--device_memory", "4GiB"]
    assert run_inference.main(argv) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("image_prefix", "lm_head", "activations", "4.00 GiB"))
    assert run_inference.main([*argv[:-1], "1MiB"]) == 2
    assert "are needed" in capsys.readouterr().err


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_a_plan_counts_weights_as_a_folder_stores_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], storage: str
):
    folder = _folder(tmp_path, storage)
    magma = Magma.from_pretrained(folder, max_batch=1, trace=tmp_path, weights="read")
    with magma:
        magma.generate(None, "A", max_new_tokens=1)
    run = json.loads((tmp_path / "memory_1.json").read_text())
    assert run["storages"].keys() == {storage, "float16"}
    argv = ["--weights", "read", "--device_memory", "4GiB"]
    assert run_inference.main(["--checkpoint", str(folder), *argv, "--plan_only"]) == 0
    table = capsys.readouterr().out
    assert f"stored as: {_said(run['storages'])}" in table
    # Resident parts are those of the run to the page.
    for phase in run["phases"]:
        (line,) = (line for line in table.split("\n") if line.startswith(f"{phase['name']} "))
        assert human(phase["bytes"]) in line


def _said(storages: dict[str, int]) -> str:
    return ", ".join(f"{name} {human(size)}" for name, size in storages.items())


def test_nobody_can_write_to_stand_ins_so_that_engines_copy_none():
    for array in planned_tensors(small_config(), Storage("float16")).values():
        while isinstance(array, np.ndarray):
            assert not array.flags.writeable
            array = array.base


def test_a_plan_for_a_folder_that_is_to_be_made(capsys: pytest.CaptureFixture[str]):
    sizes = []
    for form in ("float16", "int8", "int4"):
        argv = ["--config", "world", "--plan_only", *([form] if form != "float16" else [])]
        assert run_inference.main(argv) == 0
        table = capsys.readouterr().out
        (line,) = (line for line in table.split("\n") if line.startswith("decoder"))
        number, unit = line.split()[2:4]
        sizes.append(float(number) * {"KiB": 1, "MiB": 1024}[unit])
        assert form in table
    assert 1.6 < sizes[0] / sizes[1] < 2
    assert 2.5 < sizes[0] / sizes[2] < 4
