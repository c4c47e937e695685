"""The table of the published checkpoint against torch modules with the published structure."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest
import torch

from config.config import MagmaConfig
from tests.small_configs import small_config
from tests.utils.published_module import POSITIONS, published_module
from utils.checkpoint_layout import (
    AdapterLayout,
    AdapterSpec,
    Kind,
    alias_name,
    canonical_name,
    check_family,
    configured_layout,
    detect_layout,
    expected_tensors,
    is_ignored,
)
from utils.errors import UserError

KINDS = (None, "normal", "parallel", "scaled_parallel")


def specs(layer_norm: bool) -> list[AdapterSpec | None]:
    return [None if kind is None else AdapterSpec(kind, 16, layer_norm) for kind in KINDS]


ALL_LAYOUTS = [
    AdapterLayout(mlp=m, attention=a)
    for layer_norm in (False, True)
    for m in specs(layer_norm)
    for a in specs(layer_norm)
]


@pytest.mark.parametrize("layout", ALL_LAYOUTS, ids=lambda layout: layout.describe())
def test_names_and_shapes_are_those_of_the_published_module(layout: AdapterLayout) -> None:
    config = small_config(visual_layers=(2, 1, 3, 1))
    model = published_module(config, layout)
    state = model.state_dict()
    expected = expected_tensors(config, layout, POSITIONS)

    canonical = {n: t for n, t in state.items() if n.startswith(("lm.", "image_prefix."))}
    assert {n: tuple(t.shape) for n, t in canonical.items()} == {
        n: entry.shape for n, entry in expected.items()
    }
    aliases = {alias_name(name) for name in expected} - {None}
    assert aliases == set(state) - set(canonical)
    assert {canonical_name(name) for name in aliases} <= set(expected)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, entry in expected.items():
        assert (entry.kind is Kind.PARAMETER) == (name in parameters), name
        kind = {torch.bool: "bool", torch.int64: "int64", torch.float32: "float"}
        assert entry.dtype == kind[state[name].dtype]


@pytest.mark.parametrize("layout", ALL_LAYOUTS, ids=lambda layout: layout.describe())
def test_layout_is_detected_from_names(layout: AdapterLayout) -> None:
    names = published_module(small_config(), layout).state_dict()
    found = detect_layout(map(canonical_name, names))
    assert found == AdapterLayout(
        mlp=layout.mlp and AdapterSpec(layout.mlp.kind, 0, layout.mlp.layer_norm),
        attention=layout.attention
        and AdapterSpec(layout.attention.kind, 0, layout.attention.layer_norm),
    )


@pytest.mark.parametrize("layout", ALL_LAYOUTS, ids=lambda layout: layout.describe())
def test_a_layout_is_described_by_its_places(layout: AdapterLayout) -> None:
    for spec, place in ((layout.mlp, "MLP"), (layout.attention, "attention")):
        assert spec is None or f"{spec.kind} {place} adapters" in layout.describe()


def test_second_published_configuration_is_called_by_its_name() -> None:
    normal = AdapterSpec("normal", 16)
    assert AdapterLayout(normal, normal).describe().startswith("v2 ")
    assert AdapterLayout(normal).describe().startswith("v1 ")


# Counted from the published architecture, part by part: parameters.
PART_PARAMETERS = {
    r"lm\.transformer\.wte": 205_856_768,
    r"lm\.transformer\.h\.\d+\.ln_1": 229_376,
    r"lm\.transformer\.h\.\d+\.attn": 1_879_048_192,
    r"lm\.transformer\.h\.\d+\.mlp\.0": 3_758_669_824,
    r"lm\.transformer\.h\.\d+\.mlp\.1\.adapter": 235_024_384,
    r"lm\.transformer\.ln_f": 8_192,
    r"lm\.lm_head": 206_488_800,
    r"image_prefix\.enc\.(conv|bn)": 63_888,
    r"image_prefix\.enc\.layer1": 956_928,
    r"image_prefix\.enc\.layer2": 5_254_656,
    r"image_prefix\.enc\.layer3": 46_092_288,
    r"image_prefix\.enc\.layer4": 83_834_880,
    r"image_prefix\.proj": 12_587_008,
    r"image_prefix\.ln": 8_192,
}


def test_full_model_has_the_published_counts_and_sizes() -> None:
    expected = expected_tensors(MagmaConfig())
    aliases = [n for n in map(alias_name, expected) if n is not None]
    assert len(expected) == 1303
    assert len(expected) + len(aliases) == len(set(expected) | set(aliases)) == 1836
    by_prefix = Counter(n.split(".")[0] for n in [*expected, *aliases])
    assert by_prefix == {"lm": 537, "word_embedding": 1, "transformer": 532, "image_prefix": 766}
    assert sum(e.size_bytes(2) for e in expected.values()) == 12_993_416_264

    parameters = {n: e for n, e in expected.items() if e.kind is Kind.PARAMETER}
    assert len(parameters) == 782
    for pattern, count in PART_PARAMETERS.items():
        part = [e for n, e in parameters.items() if re.match(pattern, n)]
        assert sum(math.prod(e.shape) for e in part) == count, pattern
    assert sum(PART_PARAMETERS.values()) == 6_434_123_376

    buffers = {n: e.size_bytes(2) for n, e in expected.items() if n not in parameters}
    assert sum(s for n, s in buffers.items() if n.endswith("attention.bias")) == 117_440_512
    assert sum(s for n, s in buffers.items() if n.endswith(("sin", "cos"))) == 7_340_032
    assert sum(s for n, s in buffers.items() if ".running_" in n) == 387_840


def test_second_published_configuration_has_its_count() -> None:
    spec = AdapterSpec("normal", 512)
    expected = expected_tensors(MagmaConfig(), AdapterLayout(spec, spec))
    parameters = [e for e in expected.values() if e.kind is Kind.PARAMETER]
    assert sum(math.prod(e.shape) for e in parameters) == 6_434_238_064


def test_configuration_decides_the_layout() -> None:
    assert configured_layout(small_config(adapter_mode=None)) == AdapterLayout()
    spec = AdapterSpec("normal", 16, layer_norm=True)
    assert configured_layout(small_config(adapter_layer_norm=True)) == AdapterLayout(spec)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("word_embedding.weight", "lm.transformer.wte.weight"),
        ("transformer.11.mlp.0.c_fc.bias", "lm.transformer.h.11.mlp.0.c_fc.bias"),
        ("transformer.h.11.ln_1.bias", "lm.transformer.h.11.ln_1.bias"),
        ("transformer.wte.weight", "lm.transformer.wte.weight"),
        ("transformer.ln_f.weight", "lm.transformer.ln_f.weight"),
        ("lm_head.bias", "lm.lm_head.bias"),
        ("lm.transformer.h.1.ln_1.bias", "lm.transformer.h.1.ln_1.bias"),
        ("image_prefix.enc.conv1.weight", "image_prefix.enc.conv1.weight"),
    ],
)
def test_canonical_names(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical


@pytest.mark.parametrize(
    "name",
    [
        "lm.transformer.wpe.weight",
        "lm.transformer.h.0.ln_2.bias",
        "lm.transformer.h.3.attn.attention.out_proj.bias",
        "lm.transformer.h.0.mlp.fc_in.weight",
        "lm.transformer.h.0.attn.q_proj.weight",
    ],
)
def test_names_of_other_models_are_told_apart(name: str) -> None:
    with pytest.raises(UserError, match="another model") as error:
        check_family(["lm.transformer.wte.weight", name])
    assert name in str(error.value)


def test_names_of_every_layout_belong_to_the_family() -> None:
    for layout in ALL_LAYOUTS:
        check_family(expected_tensors(small_config(), layout))


def test_harmless_surplus_names() -> None:
    for name in ("image_prefix.enc.attnpool.c_proj.bias", "class_head.0.weight"):
        assert is_ignored(name)
    assert not any(map(is_ignored, expected_tensors(small_config())))
