"""Settings as text, from engine options and the environment."""

from __future__ import annotations

import pytest
from popxl_torch.passes.pipeline import FUSIONS as PASSES
from popxl_torch.settings import AUTO, FUSIONS, Settings, read_settings


@pytest.mark.parametrize(
    ("text", "fusions"),
    [
        ("all", FUSIONS),
        ("none", ()),
        ("views", ("views",)),
        ("linear, attention", ("linear", "attention")),
    ],
)
def test_fusions(monkeypatch: pytest.MonkeyPatch, text: str, fusions: tuple[str, ...]):
    assert read_settings({"popxl_torch.fuse": text}).fuse == fusions
    monkeypatch.setenv("POPXL_TORCH_FUSE", text)
    assert read_settings({}).fuse == fusions


def test_all_fusions_are_made_by_default():
    assert Settings().fuse == FUSIONS
    assert {name for name, _ in PASSES} == set(FUSIONS)


def test_an_unknown_fusion_is_named():
    with pytest.raises(ValueError, match=r"fuse takes all, none.*not 'softmax'\."):
        read_settings({"popxl_torch.fuse": "linear,softmax"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GiB", 2 << 30),
        ("512 MiB", 512 << 20),
        ("1.5KiB", 1536),
        ("123456789", 123456789),
        ("0", 0),
        ("auto", AUTO),
    ],
)
def test_budgets(monkeypatch: pytest.MonkeyPatch, text: str, expected: int):
    assert read_settings({"popxl_torch.device_memory": text}).device_memory == expected
    monkeypatch.setenv("POPXL_TORCH_DEVICE_MEMORY", text)
    assert read_settings({}).device_memory == expected


@pytest.mark.parametrize("text", ["2GX", "-1", "two", "1e9", "GiB", "1,5GiB", "nan"])
def test_a_nonsense_budget_is_named(text: str):
    with pytest.raises(ValueError, match=rf"device_memory takes .*2GiB, or auto, not '{text}'"):
        read_settings({"popxl_torch.device_memory": text})


@pytest.mark.parametrize("text", ["-1", "one", "1.5"])
def test_a_nonsense_prefetch_is_named(text: str):
    with pytest.raises(ValueError, match=rf"prefetch must be .*not '{text}'"):
        read_settings({"popxl_torch.prefetch": text})
