"""Reading checkpoints of every published form, and refusing everything else in one line."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from config.config import MagmaConfig
from tests.small_configs import small_config
from tests.utils.checkpoint_cases import State, canonical, refusal, save_sharded, saved
from tests.utils.published_module import deepspeed_file, published_state
from utils.checkpoint import Checkpoint, open_checkpoint
from utils.checkpoint_layout import (
    AdapterLayout,
    AdapterSpec,
    alias_name,
    configured_layout,
    expected_tensors,
)
from utils.errors import UserError

EMBEDDING = "lm.transformer.wte.weight"
QUERY = "lm.transformer.h.0.attn.attention.q_proj.weight"


def assert_equal(checkpoint: Checkpoint, state: State) -> None:
    assert set(checkpoint) == set(state)
    for name, tensor in state.items():
        array = checkpoint[name]
        expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(array, expected.numpy(), strict=True, err_msg=name)
        assert checkpoint.shape(name) == array.shape
        assert checkpoint.dtype(name) == str(tensor.dtype).removeprefix("torch.")


# ---- what is accepted ---------------------------------------------------------------------------


def test_file_as_deepspeed_saves_it(tmp_path: Path, state: State, config: MagmaConfig) -> None:
    checkpoint = open_checkpoint(saved(tmp_path, deepspeed_file(state)), config)
    assert_equal(checkpoint, canonical(state))
    assert list(checkpoint) == list(canonical(state))
    assert checkpoint.path == tmp_path / "model.pt"
    assert len(checkpoint) == len(canonical(state))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mode", ["normal", "parallel", "scaled_parallel", None])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_bare_state_dict_of_every_supported_layout_and_type(
    tmp_path: Path,
    generator: torch.Generator,
    dtype: torch.dtype,
    mode: str | None,
    layer_norm: bool,
) -> None:
    config = small_config(
        adapter_mode=mode, attention_adapter_mode=mode, adapter_layer_norm=layer_norm
    )
    state = published_state(config, configured_layout(config), generator, dtype)
    assert_equal(open_checkpoint(saved(tmp_path, state), config), canonical(state))


def test_only_canonical_names(tmp_path: Path, state: State, config: MagmaConfig) -> None:
    checkpoint = open_checkpoint(saved(tmp_path, canonical(state)), config)
    assert_equal(checkpoint, canonical(state))


def test_only_aliases(tmp_path: Path, state: State, config: MagmaConfig) -> None:
    only = {n: t for n, t in state.items() if alias_name(n) is None}
    assert QUERY not in only
    assert_equal(open_checkpoint(saved(tmp_path, only), config), canonical(state))


def test_copied_aliases_that_agree(tmp_path: Path, state: State, config: MagmaConfig) -> None:
    copied = {n: t.clone() for n, t in state.items()}
    assert_equal(open_checkpoint(saved(tmp_path, copied), config), canonical(state))


def test_canonical_name_wins_over_an_alias_that_comes_first(tmp_path: Path, state: State) -> None:
    backwards = OrderedDict(reversed(state.items()))
    assert_equal(open_checkpoint(saved(tmp_path, backwards)), canonical(state))


def test_prefix_of_a_wrapped_module(tmp_path: Path, state: State, config: MagmaConfig) -> None:
    wrapped = {f"module.{n}": t for n, t in state.items()}
    assert_equal(open_checkpoint(saved(tmp_path, wrapped), config), canonical(state))


def test_parameters_instead_of_tensors(tmp_path: Path, state: State, config: MagmaConfig) -> None:
    state[QUERY] = torch.nn.Parameter(state[QUERY])
    del state[alias_name(QUERY)]
    checkpoint = open_checkpoint(saved(tmp_path, state), config)
    np.testing.assert_array_equal(checkpoint[QUERY], state[QUERY].detach().numpy())


def test_buffers_may_be_absent(tmp_path: Path, state: State, config: MagmaConfig) -> None:
    required = {n for n, e in expected_tensors(config).items() if e.kind.required}
    kept = OrderedDict((n, t) for n, t in state.items() if n in required)
    assert len(kept) < len(canonical(state))
    assert_equal(open_checkpoint(saved(tmp_path, kept), config), kept)


def test_mask_as_bytes(tmp_path: Path, state: State, config: MagmaConfig) -> None:
    changed = canonical(state)
    for name in changed:
        if name.endswith("attention.bias"):
            changed[name] = changed[name].byte()
    assert_equal(open_checkpoint(saved(tmp_path, changed), config), changed)


def test_surplus_names_that_do_no_harm_are_listed(
    tmp_path: Path, state: State, config: MagmaConfig
) -> None:
    surplus = ["image_prefix.enc.attnpool.q_proj.weight", "class_head.0.bias"]
    checkpoint = open_checkpoint(
        saved(tmp_path, {**state, **{n: torch.ones(3) for n in surplus}}), config
    )
    assert list(checkpoint.ignored) == surplus
    assert not set(surplus) & set(checkpoint)


@pytest.mark.parametrize("rows", [105, 106, 116])
def test_word_embedding_is_brought_to_the_configured_rows(
    tmp_path: Path, state: State, config: MagmaConfig, rng: np.random.Generator, rows: int
) -> None:
    hidden = config.transformer.hidden_size
    table = torch.from_numpy(rng.standard_normal((rows, hidden))).half()
    changed = canonical(state)
    changed[EMBEDDING] = table
    path = saved(tmp_path, changed)
    found = open_checkpoint(path, config)[EMBEDDING]
    assert found.shape == (106, hidden) == open_checkpoint(path, config).shape(EMBEDDING)
    shared = min(rows, 106)
    np.testing.assert_array_equal(found[:shared], table.numpy()[:shared])
    assert not found[shared:].any()
    assert not found.flags.writeable
    assert open_checkpoint(path)[EMBEDDING].shape == (rows, hidden)


def test_safetensors(tmp_path: Path, state: State, config: MagmaConfig) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(canonical(state), path)
    assert_equal(open_checkpoint(path, config), canonical(state))
    assert_equal(open_checkpoint(tmp_path, config), canonical(state))


def test_safetensors_of_bfloat16(tmp_path: Path, generator: torch.Generator) -> None:
    config = small_config()
    state = published_state(config, configured_layout(config), generator, torch.bfloat16)
    safetensors.torch.save_file(canonical(state), tmp_path / "a.safetensors")
    assert_equal(open_checkpoint(tmp_path, config), canonical(state))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_with_an_index(
    tmp_path: Path, state: State, config: MagmaConfig, suffix: str
) -> None:
    index = save_sharded(tmp_path, canonical(state), suffix)
    assert_equal(open_checkpoint(index, config), canonical(state))
    assert_equal(open_checkpoint(tmp_path, config), canonical(state))


def test_folders(tmp_path: Path, state: State, config: MagmaConfig) -> None:
    step = tmp_path / "global_step30"
    step.mkdir()
    saved(step, deepspeed_file(state), "mp_rank_00_model_states.pt")
    assert_equal(open_checkpoint(step, config), canonical(state))
    (tmp_path / "latest").write_text("global_step30\n")
    assert_equal(open_checkpoint(tmp_path, config), canonical(state))


# ---- laziness and bookkeeping -------------------------------------------------------------------


def mapped_ranges(path: Path) -> list[tuple[int, int]]:
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            start, end = line.split()[0].split("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_arrays_are_read_only_views_of_the_mapped_file(
    tmp_path: Path, generator: torch.Generator, config: MagmaConfig, dtype: torch.dtype, suffix: str
) -> None:
    state = canonical(published_state(config, configured_layout(config), generator, dtype))
    path = tmp_path / f"model.{suffix}"
    if suffix == "pt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    checkpoint = open_checkpoint(path, config)
    for name in checkpoint:
        array = checkpoint[name]
        address = array.__array_interface__["data"][0]
        assert any(start <= address < end for start, end in mapped_ranges(path)), name
        assert not array.flags.writeable
        assert np.shares_memory(array, checkpoint[name])


def test_arrays_outlive_the_checkpoint(tmp_path: Path, state: State) -> None:
    array = open_checkpoint(saved(tmp_path, state))[QUERY]
    np.testing.assert_array_equal(array, state[QUERY].numpy())


def test_unknown_name_is_named(tmp_path: Path, state: State) -> None:
    checkpoint = open_checkpoint(saved(tmp_path, state))
    assert "nonsense" not in checkpoint
    with pytest.raises(UserError, match=r"lacks the tensor nonsense"):
        checkpoint["nonsense"]


# ---- wrong contents -----------------------------------------------------------------------------


def test_missing_tensors_are_named_and_counted(
    tmp_path: Path, state: State, config: MagmaConfig
) -> None:
    gone = ["image_prefix.proj.bias", "lm.transformer.ln_f.bias"]
    rest = {n: t for n, t in state.items() if n not in gone}
    message = refusal(saved(tmp_path, rest), config)
    assert "2 tensors are missing" in message
    assert all(name in message for name in gone)


@pytest.mark.parametrize("entry", ["running_var", "running_mean"])
def test_statistics_are_required(
    tmp_path: Path, state: State, config: MagmaConfig, entry: str
) -> None:
    name = f"image_prefix.enc.layer2.0.bn2.{entry}"
    del state[name]
    assert f"1 tensor is missing: {name}" in refusal(saved(tmp_path, state), config)


def test_extra_tensors_are_named_and_counted(
    tmp_path: Path, state: State, config: MagmaConfig
) -> None:
    state["image_prefix.extra"] = torch.ones(1)
    message = refusal(saved(tmp_path, state), config)
    assert "1 tensor is unknown: image_prefix.extra" in message


def test_misshapen_tensor_is_named_with_both_shapes(
    tmp_path: Path, state: State, config: MagmaConfig
) -> None:
    changed = canonical(state)
    changed[QUERY] = torch.ones(64, 63)
    message = refusal(saved(tmp_path, changed), config)
    assert f"{QUERY} is (64, 63), expected (64, 64)" in message


def test_word_embedding_with_odd_rows_is_refused(
    tmp_path: Path, state: State, config: MagmaConfig
) -> None:
    changed = canonical(state)
    changed[EMBEDDING] = torch.ones(90, 64)
    assert f"{EMBEDDING} is (90, 64), expected (106, 64)" in refusal(
        saved(tmp_path, changed), config
    )


def test_bias_in_place_of_the_mask_is_refused(
    tmp_path: Path, state: State, config: MagmaConfig
) -> None:
    changed = canonical(state)
    name = "lm.transformer.h.1.attn.attention.bias"
    changed[name] = torch.ones(64)
    assert f"{name} is (64,)" in refusal(saved(tmp_path, changed), config)


def test_integers_as_weights_are_refused(tmp_path: Path, state: State, config: MagmaConfig) -> None:
    changed = canonical(state)
    changed[QUERY] = changed[QUERY].char()
    assert f"{QUERY} is int8" in refusal(saved(tmp_path, changed), config)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"layers": 3}, "transformer.layers = 2 (the configuration says 3)"),
        ({"visual_layers": (2, 2, 1, 2)}, "tensors are missing: image_prefix.enc.layer1.1."),
        ({"visual_layers": (1, 1, 1, 1)}, "tensors are unknown: image_prefix.enc.layer2.1."),
    ],
)
def test_checkpoint_of_another_preset(
    tmp_path: Path, state: State, changes: dict[str, object], field: str
) -> None:
    assert field in refusal(saved(tmp_path, state), small_config(**changes))


def test_layout_that_the_configuration_does_not_ask_for(
    tmp_path: Path, state: State, generator: torch.Generator
) -> None:
    path = saved(tmp_path, state)
    message = refusal(path, small_config(adapter_mode=None))
    assert "set transformer.ff_adapter.mode to normal" in message
    message = refusal(path, small_config(adapter_layer_norm=True))
    assert "set transformer.ff_adapter.layer_norm to False" in message
    plain = published_state(small_config(), AdapterLayout(), generator)
    message = refusal(saved(tmp_path, plain), small_config())
    assert "no adapters" in message
    assert "set transformer.ff_adapter.mode to none" in message


@pytest.mark.parametrize(
    "layout",
    [
        AdapterLayout(AdapterSpec("normal", 8), AdapterSpec("normal", 8)),
        AdapterLayout(AdapterSpec("parallel", 16)),
        AdapterLayout(AdapterSpec("scaled_parallel", 16)),
        AdapterLayout(None, AdapterSpec("scaled_parallel", 16)),
    ],
)
def test_other_layouts_end_in_a_line_that_names_them(
    tmp_path: Path, generator: torch.Generator, config: MagmaConfig, layout: AdapterLayout
) -> None:
    path = saved(tmp_path, published_state(config, layout, generator))
    assert layout.describe() in refusal(path, config)


def test_language_model_alone_lacks_the_image_prefix(
    tmp_path: Path, state: State, config: MagmaConfig
) -> None:
    alone = {n.removeprefix("lm."): t for n, t in state.items() if n.startswith("lm.")}
    message = refusal(saved(tmp_path, alone), config)
    assert "missing: image_prefix." in message
    assert "unknown" not in message


def test_other_models_are_told_apart(tmp_path: Path, state: State, config: MagmaConfig) -> None:
    state["lm.transformer.wpe.weight"] = torch.ones(4, 4)
    assert "GPT-Neo" in refusal(saved(tmp_path, state), config)
    assert "no MAGMA tensors (fc.weight)" in refusal(
        saved(tmp_path, {"fc.weight": torch.ones(1)}), config
    )


def test_aliases_that_differ_are_refused(tmp_path: Path, state: State) -> None:
    alias = alias_name(QUERY)
    state[alias] = state[alias].clone()
    state[alias][3, 5] += 1
    message = refusal(saved(tmp_path, state))
    assert QUERY in message
    assert alias in message


def test_aliases_of_different_shape_are_refused(tmp_path: Path, state: State) -> None:
    state[alias_name(QUERY)] = torch.ones(2, 2)
    assert QUERY in refusal(saved(tmp_path, state))
