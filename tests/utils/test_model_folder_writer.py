"""Model folders: the same numbers at every degree of tensor parallelism, whole or absent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from config.config import MagmaConfig
from modelling.mapping import model_weights
from tests.small_configs import TENSOR_PARALLEL, small_config
from utils import model_folder_rows, model_folder_writer
from utils.checkpoint import Checkpoint, open_checkpoint
from utils.checkpoint_files import CONVERSION_FILE, open_tensors
from utils.checkpoint_writer import write_random_checkpoint
from utils.errors import UserError
from utils.folder_layout import slab_of
from utils.model_folder import INDEX_FILE, folder_config, verify_model_folder
from utils.model_folder_rows import PADDING, Storage
from utils.model_folder_writer import write_model_folder
from utils.quantise import QuantisedWeight

ROOT = Path(__file__).parents[2]


def checkpoint_of(folder: Path, config: MagmaConfig, dtype: str = "float32") -> Checkpoint:
    path = folder / "model.pt"
    write_random_checkpoint(path, config, seed=5, dtype=dtype, positions=16)
    return open_checkpoint(path, config)


def data_start(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Where the tensors of a file begin and end, counted from the file's beginning."""
    start = data_start(path)
    header = json.loads(path.read_bytes()[8:start])
    header.pop("__metadata__")
    return {n: tuple(start + o for o in row["data_offsets"]) for n, row in header.items()}


@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_the_weights_are_those_of_the_checkpoint(
    tmp_path: Path, precision: str, tensor_parallel: int
) -> None:
    config = small_config(tensor_parallel, precision)
    checkpoint = checkpoint_of(tmp_path, config)
    write_model_folder(checkpoint, config, tmp_path / "folder", Storage(precision))
    ours = model_weights(config, open_checkpoint(tmp_path / "folder", config))
    expected = model_weights(config, checkpoint)
    assert ours.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(ours[key], array, err_msg=key)


@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_every_weight_is_a_view_of_its_mapped_file(tmp_path: Path, tensor_parallel: int) -> None:
    config = small_config(tensor_parallel)
    write_model_folder(
        checkpoint_of(tmp_path, config), config, tmp_path / "folder", Storage("float32")
    )
    for key, array in model_weights(config, open_checkpoint(tmp_path / "folder", config)).items():
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        assert isinstance(owner, np.memmap), key


def test_bfloat16_is_rounded_as_torch_rounds(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(3).standard_normal(4096).astype(np.float32)
    values[:4] = [np.inf, -np.inf, np.nan, 0.0]
    values[4:6] = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)  # ties
    ours = (model_folder_rows._to_bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(ours, torch.from_numpy(values).bfloat16().float().numpy())


def test_a_bfloat16_folder_reads_as_rounded_numbers(tmp_path: Path) -> None:
    config = small_config()
    checkpoint = checkpoint_of(tmp_path, config)
    write_model_folder(checkpoint, config, tmp_path / "folder", Storage("bfloat16"))
    folder = open_checkpoint(tmp_path / "folder", config)
    name = "lm.lm_head.weight"
    assert folder.dtype(name) == "bfloat16"
    np.testing.assert_allclose(folder[name], checkpoint[name], rtol=2**-8)


def test_slabs_and_tensors_are_aligned_and_the_format_is_safetensors(tmp_path: Path) -> None:
    config = small_config(precision="float16")
    write_model_folder(checkpoint_of(tmp_path, config), config, tmp_path / "folder", Storage())
    first_of_slab: dict[str, int] = {}
    for path in sorted((tmp_path / "folder").glob("*.safetensors")):
        with safe_open(path, "np") as file:
            assert set(file.keys()) == set(offsets(path))
        for name, (start, _) in offsets(path).items():
            if not name.startswith(PADDING):
                assert start % 64 == 0, name
                first_of_slab.setdefault(slab_of(name), start)
    assert len(first_of_slab) == 12
    assert all(start % 4096 == 0 for start in first_of_slab.values())


def test_a_folder_can_be_converted_again(tmp_path: Path) -> None:
    config = small_config()
    checkpoint = checkpoint_of(tmp_path, config)
    write_model_folder(checkpoint, config, tmp_path / "first", Storage("float32"))
    first = open_checkpoint(tmp_path / "first", config)
    write_model_folder(first, config, tmp_path / "second", Storage("float32"))
    sums = [json.loads((tmp_path / n / INDEX_FILE).read_text()) for n in ("first", "second")]
    assert sums[0] == sums[1]


def test_the_configuration_is_kept(tmp_path: Path) -> None:
    config = small_config(2, "float16", adapter_layer_norm=True)
    write_model_folder(checkpoint_of(tmp_path, config), config, tmp_path / "folder", Storage())
    assert folder_config(tmp_path / "folder") == config


# ---- whole or absent ----------------------------------------------------------------------------


class Stopped(Exception):
    """Stands for a process that ends."""


def stop_after(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """Ends a conversion in the middle of the file after so many."""
    write, counter = model_folder_writer._write_rows, iter(range(1000))

    def stopping(file, rows, advance):
        if next(counter) == files:
            file.write(b"half")
            raise Stopped
        return write(file, rows, advance)

    monkeypatch.setattr(model_folder_writer, "_write_rows", stopping)


@pytest.mark.parametrize("files", [0, 1, 3])
def test_an_ended_conversion_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    config, out = small_config(), tmp_path / "folder"
    checkpoint = checkpoint_of(tmp_path, config)
    with monkeypatch.context() as patch:
        stop_after(patch, files)
        with pytest.raises(Stopped):
            write_model_folder(checkpoint, config, out, Storage())
    assert not out.exists()
    partial = tmp_path / "folder.partial"
    with pytest.raises(UserError, match="unfinished model folder"):
        open_checkpoint(partial)
    before = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    assert len(before) == files
    write_model_folder(checkpoint, config, out, Storage())
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert before.items() <= after.items()
    assert verify_model_folder(out) == len(open_tensors(out))
    assert not partial.exists()


def test_a_finished_file_that_was_cut_short_is_written_again(
    tmp_path: Path, unfinished: tuple[Checkpoint, MagmaConfig]
) -> None:
    cut, lost = sorted((tmp_path / "folder.partial").glob("*.safetensors"))[:2]
    os.truncate(cut, cut.stat().st_size // 2)
    lost.unlink()
    write_model_folder(*unfinished, tmp_path / "folder", Storage())
    verify_model_folder(tmp_path / "folder")


def test_killed_anywhere_it_is_never_taken_for_whole(tmp_path: Path) -> None:
    """A process that converts slowly is killed at three moments, then allowed to finish."""
    config = small_config()
    checkpoint_of(tmp_path, config)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from tests.small_configs import small_config\n"
        "from utils.checkpoint import open_checkpoint\n"
        "from utils import model_folder_writer as w\n"
        "write = w._write_row\n"
        "def slow(*a):\n    time.sleep(float(sys.argv[2])); return write(*a)\n"
        "w._write_row = slow\n"
        "config = small_config(); print('ready', flush=True)\n"
        "folder = Path(sys.argv[1])\n"
        "checkpoint = open_checkpoint(folder / 'model.pt', config)\n"
        "w.write_model_folder(checkpoint, config, folder / 'out', w.Storage())"
    )

    def started(delay_s: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, str(tmp_path), str(delay_s)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )

    for wait_s in (0.05, 0.3):
        with started(0.01) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(wait_s)
            process.send_signal(signal.SIGKILL)
        assert not (tmp_path / "out").exists()
    with started(0) as process:
        assert process.wait() == 0
    assert verify_model_folder(tmp_path / "out") > 0
    assert not list((tmp_path / "out").glob(".*"))


def test_ended_just_before_the_folder_got_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = small_config(), tmp_path / "folder"
    checkpoint = checkpoint_of(tmp_path, config)

    def stop(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(model_folder_writer, "_complete", stop)
        with pytest.raises(Stopped):
            write_model_folder(checkpoint, config, out, Storage())
    write_model_folder(checkpoint, config, out, Storage())
    verify_model_folder(out)


def test_a_full_disk_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = small_config(), tmp_path / "folder"
    checkpoint = checkpoint_of(tmp_path, config)
    write, counter = model_folder_writer._write_row, iter(range(1000))

    def full(*arguments):
        if next(counter) == 100:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model_folder_writer, "_write_row", full)
        with pytest.raises(UserError, match=r"no space left on device.*run the same command again"):
            write_model_folder(checkpoint, config, out, Storage())
    assert not out.exists()
    write_model_folder(checkpoint, config, out, Storage())
    verify_model_folder(out)


def test_space_is_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    checkpoint = checkpoint_of(tmp_path, config)

    class Usage:
        free = 1000

    monkeypatch.setattr(model_folder_writer.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(UserError, match="bytes are needed, 1,000 are free"):
        write_model_folder(checkpoint, config, tmp_path / "folder", Storage())


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Checkpoint, MagmaConfig]:
    config = small_config()
    checkpoint = checkpoint_of(tmp_path, config)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            write_model_folder(checkpoint, config, tmp_path / "folder", Storage())
    return checkpoint, config


def test_another_conversion_does_not_go_on(
    tmp_path: Path, unfinished: tuple[Checkpoint, MagmaConfig]
) -> None:
    with pytest.raises(UserError, match="unfinished conversion of another checkpoint"):
        write_model_folder(*unfinished, tmp_path / "folder", Storage("float32"))


@pytest.mark.parametrize("journal", [b"", b"[]", b"{", b'{"origin": 1}'])
def test_a_damaged_journal_is_refused(
    tmp_path: Path, unfinished: tuple[Checkpoint, MagmaConfig], journal: bytes
) -> None:
    (tmp_path / "folder.partial" / CONVERSION_FILE).write_bytes(journal)
    with pytest.raises(UserError, match="remove it"):
        write_model_folder(*unfinished, tmp_path / "folder", Storage())


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    config = small_config()
    checkpoint = checkpoint_of(tmp_path, config)
    (tmp_path / "folder.partial").mkdir()
    (tmp_path / "folder.partial" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        write_model_folder(checkpoint, config, tmp_path / "folder", Storage())
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_model_folder(checkpoint, config, tmp_path / "taken", Storage())


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    config = small_config()
    checkpoint = checkpoint_of(tmp_path, config)
    with (
        model_folder_writer._locked(tmp_path / "folder.partial"),
        pytest.raises(UserError, match="another process"),
    ):
        write_model_folder(checkpoint, config, tmp_path / "folder", Storage())


def test_a_weight_too_large_for_float16_is_named(tmp_path: Path) -> None:
    config = small_config()
    path = tmp_path / "model.pt"
    write_random_checkpoint(path, config, dtype="float32", positions=16)
    import torch

    content = torch.load(path, weights_only=True)
    content["module"]["lm.lm_head.bias"][3] = -70000.0
    torch.save(content, path)
    with pytest.raises(UserError, match=r"lm\.lm_head\.bias has the value 70000, too large"):
        write_model_folder(open_checkpoint(path, config), config, tmp_path / "folder", Storage())


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(UserError, match="float7"):
        Storage("float7")


# ---- quantised ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_quantised_weights_stand_for_the_rounded_ones(
    tmp_path: Path, format: str, tensor_parallel: int
) -> None:
    config = small_config(tensor_parallel)
    checkpoint = checkpoint_of(tmp_path, config)
    storage = Storage(format, ("blocks", "head"))
    write_model_folder(checkpoint, config, tmp_path / "folder", storage)
    assert verify_model_folder(tmp_path / "folder") > 0
    ours = model_weights(config, open_checkpoint(tmp_path / "folder", config))
    expected = model_weights(config, checkpoint)
    kinds = set()
    for key, array in expected.items():
        assert ours[key].shape == array.shape, key
        kinds.add(isinstance(ours[key], QuantisedWeight))
        numbers = np.asarray(ours[key])
        error = np.abs(numbers - array).max() / np.abs(array).max()
        limit = {"int8": 0.01, "int4": 0.2}[format]
        assert error < (limit if isinstance(ours[key], QuantisedWeight) else 1e-3), key
    assert kinds == {True, False}
    adapters = [array for key, array in ours.items() if "adapter" in key]
    assert adapters
    assert not any(isinstance(array, QuantisedWeight) for array in adapters)


def test_a_matrix_that_does_not_fit_int4_is_named(tmp_path: Path) -> None:
    config = small_config(hidden_size=72)
    with pytest.raises(UserError, match=r"proj\.weight .* cannot be stored as int4"):
        write_model_folder(
            checkpoint_of(tmp_path, config), config, tmp_path / "folder", Storage("int4")
        )


def test_a_quantised_folder_is_not_converted_again(tmp_path: Path) -> None:
    config = small_config()
    checkpoint = checkpoint_of(tmp_path, config)
    write_model_folder(checkpoint, config, tmp_path / "folder", Storage("int8"))
    with pytest.raises(UserError, match="is quantised; convert the checkpoint"):
        write_model_folder(
            open_checkpoint(tmp_path / "folder", config), config, tmp_path / "second", Storage()
        )
