"""Settings as text, from engine options and the environment."""

from __future__ import annotations

import pytest
from popxl_torch.passes.pipeline import FUSIONS as PASSES
from popxl_torch.settings import FUSIONS, Settings, read_settings


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
