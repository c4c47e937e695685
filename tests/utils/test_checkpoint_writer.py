"""Random checkpoints: torch's own loader sees exactly the published layout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from config.config import MagmaConfig
from config.parsing import load_preset
from tests.reference.magma import ReferenceMagma
from tests.small_configs import small_config
from tests.utils.published_module import deepspeed_file, published_module
from utils import checkpoint_writer, random_tensors
from utils.checkpoint import open_checkpoint, write_random_checkpoint
from utils.checkpoint_layout import Kind, alias_name, configured_layout, expected_tensors
from utils.checkpoint_writer import main
from utils.errors import UserError
from utils.random_tensors import RandomTensors

ROOT = Path(__file__).parents[2]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
POSITIONS = 40


def write(path: Path, config: MagmaConfig, **options: object) -> Path:
    write_random_checkpoint(path, config, positions=POSITIONS, **options)
    return path


def load(path: Path) -> dict[str, object]:
    return torch.load(path, weights_only=True, mmap=True, map_location="cpu")


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize(
    "changes", [{}, {"adapter_mode": None}, {"adapter_layer_norm": True}], ids=str
)
def test_torch_loads_the_published_layout(
    tmp_path: Path, changes: dict[str, object], dtype: str
) -> None:
    config = small_config(**changes)
    content = load(write(tmp_path / "a.pt", config, dtype=dtype))
    assert set(content) >= {"module", "ds_config", "ds_version", "global_steps", "lr_scheduler"}
    assert isinstance(content["csr_tensor_module_names"], set)
    module = content["module"]
    layout = configured_layout(config)
    published = published_module(config, layout).state_dict()
    assert set(module) == set(published)
    for name, tensor in module.items():
        expected = published[name]
        is_table = name.endswith((".sin", ".cos", "attention.bias"))
        assert tensor.shape == expected.shape or is_table
        floating = expected.is_floating_point()
        assert tensor.dtype == (DTYPES[dtype] if floating else expected.dtype)
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0


def test_order_of_names_is_the_published_one(tmp_path: Path, config: MagmaConfig) -> None:
    module = load(write(tmp_path / "a.pt", config))["module"]
    groups = list(dict.fromkeys(name.split(".")[0] for name in module))
    assert groups == ["lm", "word_embedding", "transformer", "image_prefix"]


def test_whole_file_is_readable_without_mapping(tmp_path: Path, config: MagmaConfig) -> None:
    path = write(tmp_path / "a.pt", config)
    assert zipfile.ZipFile(path).testzip() is None
    mapped, read = load(path)["module"], torch.load(path, weights_only=True)["module"]
    for name in mapped:
        torch.testing.assert_close(read[name], mapped[name], rtol=0, atol=0, equal_nan=True)


def test_torch_saves_the_same_structure(tmp_path: Path, config: MagmaConfig) -> None:
    """Saving what was loaded keeps sharing, so the file does not grow."""
    path = write(tmp_path / "a.pt", config)
    torch.save(deepspeed_file(load(path)["module"]), tmp_path / "b.pt")
    sizes = [p.stat().st_size for p in (path, tmp_path / "b.pt")]
    assert abs(sizes[0] - sizes[1]) < 0.1 * sizes[0]
    first, second = open_checkpoint(path, config), open_checkpoint(tmp_path / "b.pt", config)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_aliases_share_storage(tmp_path: Path, config: MagmaConfig) -> None:
    module = load(write(tmp_path / "a.pt", config))["module"]
    shared = [name for name in module if alias_name(name)]
    assert len(shared) == 1 + 2 * 19
    for name in shared:
        assert module[name].data_ptr() == module[alias_name(name)].data_ptr()
    pointers = {t.data_ptr() for t in module.values()}
    assert len(pointers) == len(expected_tensors(config))


def test_levels_and_aliases_are_optional(tmp_path: Path, config: MagmaConfig) -> None:
    path = write(tmp_path / "a.pt", config, with_aliases=False, module_level=False)
    assert set(load(path)) == set(expected_tensors(config))
    full = open_checkpoint(write(tmp_path / "b.pt", config), config)
    bare = open_checkpoint(path, config)
    assert full.path.stat().st_size < 1.1 * bare.path.stat().st_size
    for name in full:
        np.testing.assert_array_equal(full[name], bare[name])


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_safetensors_hold_the_same_numbers(tmp_path: Path, config: MagmaConfig, dtype: str) -> None:
    path = write(tmp_path / "a.safetensors", config, dtype=dtype, format="safetensors")
    found = safetensors.torch.load_file(path)
    module = load(write(tmp_path / "a.pt", config, dtype=dtype))["module"]
    assert set(found) == set(expected_tensors(config))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, module[name], rtol=0, atol=0)
    with path.open("rb") as file:
        assert (8 + int.from_bytes(file.read(8), "little")) % 64 == 0


def test_seed_decides_every_number(tmp_path: Path, config: MagmaConfig) -> None:
    first = write(tmp_path / "a.pt", config, seed=3)
    second = write(tmp_path / "b.pt", config, seed=3)
    other = write(tmp_path / "c.pt", config, seed=4)
    assert first.read_bytes() == second.read_bytes()
    a, c = open_checkpoint(first, config), open_checkpoint(other, config)
    for name, entry in expected_tensors(config).items():
        assert np.array_equal(a[name], c[name]) != entry.kind.required, name


def test_tensors_of_equal_shape_differ(tmp_path: Path, config: MagmaConfig) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "a.pt", config, dtype="float32"), config)
    drawn = [n for n, e in expected_tensors(config).items() if e.kind.required]
    contents = {checkpoint[name].tobytes() for name in drawn}
    assert len(contents) == len(drawn)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_roundings_of_the_float32_file(
    tmp_path: Path, config: MagmaConfig, dtype: str
) -> None:
    full = load(write(tmp_path / "a.pt", config, dtype="float32"))["module"]
    half = load(write(tmp_path / "b.pt", config, dtype=dtype))["module"]
    for name, tensor in full.items():
        expected = tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor
        torch.testing.assert_close(half[name], expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_file_holds_what_can_be_drawn_again(
    tmp_path: Path, config: MagmaConfig, dtype: str
) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "a.pt", config, seed=9, dtype=dtype), config)
    drawn = RandomTensors(config, seed=9, dtype=dtype, positions=POSITIONS)
    assert list(drawn) == list(expected_tensors(config))
    for name, array in drawn.items():
        np.testing.assert_array_equal(checkpoint[name], array.reshape(checkpoint.shape(name)))


def test_drawn_arrays_cannot_be_changed(config: MagmaConfig) -> None:
    """So that an engine may keep them instead of copies."""
    array = RandomTensors(config)["lm.lm_head.weight"]
    while isinstance(array, np.ndarray):
        assert not array.flags.writeable
        array = array.base


def test_pieces_join_to_one_draw(monkeypatch: pytest.MonkeyPatch, config: MagmaConfig) -> None:
    name = "lm.lm_head.weight"
    whole = RandomTensors(config)[name]
    monkeypatch.setattr(random_tensors, "_BUFFER", 1000)
    monkeypatch.setattr(random_tensors, "_CHUNK", 300)
    np.testing.assert_array_equal(RandomTensors(config)[name], whole)


def test_numbers_are_normal_with_the_scale_of_their_place() -> None:
    tensors = RandomTensors(MagmaConfig())
    names = {
        "image_prefix.enc.conv3.weight": (0, (2 / (48 * 9)) ** 0.5),
        "image_prefix.enc.layer3.5.conv2.weight": (0, (2 / (384 * 9)) ** 0.5),
        "image_prefix.enc.layer3.5.conv3.weight": (0, 384**-0.5),
        "image_prefix.enc.layer4.1.bn3.weight": (0.4, 0.1),
        "image_prefix.enc.layer4.1.bn3.running_var": (1, 0.15),
        "lm.transformer.h.27.mlp.1.adapter.0.weight": (0, 1 / 64),
        "lm.transformer.h.27.mlp.1.adapter.2.weight": (0, 0.5 / 32),
        "lm.transformer.h.27.mlp.0.c_fc.bias": (0, 0.05),
        "lm.transformer.ln_f.weight": (1, 0.1),
    }
    for name, (centre, spread) in names.items():
        values = tensors[name].astype(np.float64)
        error = 5 / np.sqrt(values.size)
        standard = (values - centre) / spread
        assert abs(standard.mean()) < error
        assert abs(standard.std() - 1) < error
        assert abs((standard**3).mean()) < 4 * error
        assert abs((standard**4).mean() - 3) < 10 * error
        if values.ndim > 1:
            flat = standard.reshape(-1)
            assert abs((flat[1:] * flat[:-1]).mean()) < error


def test_no_tensor_is_neutral(tmp_path: Path, config: MagmaConfig) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "a.pt", config), config)
    for name, entry in expected_tensors(config).items():
        if not entry.kind.required:
            continue
        values = checkpoint[name].astype(np.float32)
        assert np.isfinite(values).all()
        assert values.std() > 0.01 if values.size > 4 else values.any(), name
        if name.endswith("running_var"):
            assert values.min() > 0.2


def test_buffers_are_those_of_the_original(tmp_path: Path, config: MagmaConfig) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "a.pt", config), config)
    base = "lm.transformer.h.1.attn.attention"
    mask = checkpoint[f"{base}.bias"]
    rows, columns = np.indices((POSITIONS, POSITIONS))
    np.testing.assert_array_equal(mask[0, 0], columns <= rows)
    assert mask.dtype == np.bool_
    assert checkpoint[f"{base}.masked_bias"] == -np.inf
    assert checkpoint[f"{base}.scale_attn"] == 4.0
    rotary = config.transformer.attention.rotary_dim
    angles = np.outer(np.arange(POSITIONS), 10000.0 ** (-2 * np.arange(rotary // 2) / rotary))
    half_ulp = 2.0**-12
    np.testing.assert_allclose(checkpoint[f"{base}.sin"], np.sin(angles), rtol=0, atol=half_ulp)
    np.testing.assert_allclose(checkpoint[f"{base}.cos"], np.cos(angles), rtol=0, atol=half_ulp)
    counters = [n for n, e in expected_tensors(config).items() if e.kind is Kind.COUNTER]
    assert {int(checkpoint[name]) for name in counters} == {150_000}


def test_file_is_replaced_when_complete(tmp_path: Path, config: MagmaConfig) -> None:
    path = tmp_path / "a.pt"
    path.write_text("old")
    write(path, config)
    open_checkpoint(path, config)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_error_while_writing_leaves_nothing(
    tmp_path: Path, config: MagmaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(random_tensors, "_buffer_values", fail)
    with pytest.raises(UserError, match=r"no space left on device \([\d,]+ bytes are needed\)"):
        write(path, config)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    assert path.read_text() == "old"


def test_full_disk_is_noticed_before_writing(
    tmp_path: Path, config: MagmaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**6, 10**6 - 1234, 1234))
    with pytest.raises(UserError, match=r"no space left: [\d,]+ bytes are needed, 1,234 are free"):
        write(tmp_path / "a.pt", config)
    assert list(tmp_path.iterdir()) == []


def test_needed_space_bounds_the_file(
    tmp_path: Path, config: MagmaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = []
    original = checkpoint_writer.atomic_file
    monkeypatch.setattr(
        checkpoint_writer, "atomic_file", lambda p, n: needed.append(n) or original(p, n)
    )
    for format in checkpoint_writer.FORMATS:
        size = write(tmp_path / f"a.{format}", config, format=format).stat().st_size
        assert size <= needed.pop() <= 2 * size


@pytest.mark.parametrize("option", [{"dtype": "float64"}, {"format": "npz"}])
def test_unknown_options_are_named(
    tmp_path: Path, config: MagmaConfig, option: dict[str, str]
) -> None:
    (name, value), *_ = option.items()
    with pytest.raises(UserError, match=f"{name} '{value}' is unknown"):
        write(tmp_path / "a", config, **option)
    assert list(tmp_path.iterdir()) == []


def test_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    assert main(["--config", "tiny", "--dtype", "float32", "--seed", "5", str(path)]) == 0
    assert f"{path.stat().st_size:,} bytes" in capsys.readouterr().out
    name = "lm.transformer.ln_f.bias"
    found = safetensors.torch.load_file(path)[name].numpy()
    drawn = RandomTensors(load_preset("tiny"), seed=5)
    np.testing.assert_array_equal(found, drawn[name])


def test_program_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unusable = ["--config", "tiny", str(tmp_path)]
    for arguments in (["--config", "tinny", "x.pt"], unusable, [], ["x.pt", "--dtype", "int8"]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_help_of_the_module() -> None:
    command = [sys.executable, "-m", "utils.checkpoint_writer", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--dtype" in done.stdout
    assert "--transformer.layers" in done.stdout


def test_program_writes_any_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert main([str(path), "--transformer.layers", "3", "--hidden_size", "128"]) == 0
    config = load_preset("tiny")
    config.transformer.layers, config.transformer.hidden_size = 3, 128
    open_checkpoint(path, config)


MEASURE = """
import resource, sys
from tests.reference.magma import ReferenceMagma
from tests.small_configs import small_config
from utils.checkpoint import write_random_checkpoint
import torch
write_random_checkpoint(sys.argv[1], small_config())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
config = small_config()
config.transformer.hidden_size = 2048
write_random_checkpoint(sys.argv[1], config)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    command = [sys.executable, "-c", MEASURE, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    growth_bytes = int(done.stdout) * 1024
    assert path.stat().st_size > 200e6
    assert growth_bytes < 64e6


def test_logits_depend_on_the_picture_and_on_every_token(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """Else a parity test on such a checkpoint would not notice a lost image or token."""
    config = small_config(layers=6, image_resolution=96, visual_layers=(2, 2, 3, 2))
    model = ReferenceMagma.from_checkpoint(write(tmp_path / "a.pt", config), config)
    pixels = torch.from_numpy(rng.standard_normal((2, 1, 3, 96, 96))).float()
    count = config.text_tokens
    vocabulary = config.transformer.embedding.real_vocab_size
    ids = torch.from_numpy(rng.permutation(vocabulary)[: 2 * count]).reshape(2, 1, count)
    logits = model.logits(pixels[0], ids[0])
    assert logits.isfinite().all()
    scale = logits.std()

    def change(pixels: torch.Tensor, ids: torch.Tensor) -> float:
        return float((model.logits(pixels, ids) - logits)[0, -1].std() / scale)

    assert change(pixels[1], ids[0]) > 0.02
    for position in range(count):
        other = ids[0].clone()
        other[0, position] = ids[1, 0, position]
        assert change(pixels[0], other) > 0.02, position
