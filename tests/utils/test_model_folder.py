"""What is wrong with a model folder is said in one line that names the file and the tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.small_configs import small_config
from utils.checkpoint import open_checkpoint
from utils.checkpoint_writer import write_random_checkpoint
from utils.errors import UserError
from utils.model_folder import (
    CONFIG_FILE,
    INDEX_FILE,
    folder_config,
    is_model_folder,
    verify_model_folder,
)
from utils.model_folder_rows import Storage
from utils.model_folder_writer import write_model_folder
from utils.tokenizer import SMALL_TOKENIZER, VOCAB_FILES

SHARD = "model-00003-of-00005.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = small_config()
    write_random_checkpoint(tmp_path / "model.pt", config, dtype="float32", positions=16)
    checkpoint = open_checkpoint(tmp_path / "model.pt", config)
    write_model_folder(checkpoint, config, tmp_path / "folder", Storage("float32"))
    return tmp_path / "folder"


@pytest.mark.parametrize("name", ["n" * 300, "nowhere", ""])
def test_no_name_is_an_error(name: str) -> None:
    assert not is_model_folder(Path(name))


def test_a_good_folder_passes(folder: Path) -> None:
    assert is_model_folder(folder)
    assert verify_model_folder(folder) == len(open_checkpoint(folder, small_config()))


def test_a_flipped_bit_is_found_and_its_tensor_named(folder: Path) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    position = data.index(b"\0" * 0 + b"}}") + 5000
    data[position] ^= 1
    (folder / SHARD).write_bytes(data)
    with pytest.raises(UserError, match=rf"{SHARD}: the tensor lm\.transformer\.h\.0\..* damaged"):
        verify_model_folder(folder)


@pytest.mark.parametrize("name", [CONFIG_FILE, "vocab.json", "merges.txt"])
def test_every_other_file_is_compared_too(folder: Path, name: str) -> None:
    """Of a folder with a tokenizer, converted again from one without."""
    for file in VOCAB_FILES:
        shutil.copy(SMALL_TOKENIZER / file, folder)
    again = folder.with_name("again")
    checkpoint = open_checkpoint(folder, small_config())
    write_model_folder(checkpoint, small_config(), again, Storage("float32"))
    verify_model_folder(again)
    content = (again / name).read_bytes()
    (again / name).write_bytes(content + b"\n")
    with pytest.raises(UserError, match=f"{name}: is not what was written"):
        verify_model_folder(again)
    (again / name).unlink()
    with pytest.raises(UserError, match=f"{name}: cannot read the file"):
        verify_model_folder(again)


@pytest.mark.parametrize("damaged", [[], {"../x": "0"}, None])
def test_damaged_checksums_of_files_are_named(folder: Path, damaged: object) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    (folder / INDEX_FILE).write_text(json.dumps(index | {"files_sha256": damaged}))
    with pytest.raises(UserError, match="checksums of files are damaged"):
        verify_model_folder(folder)


def test_a_folder_without_checksums_of_files_is_one_of_before(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    del index["files_sha256"]
    (folder / INDEX_FILE).write_text(json.dumps(index))
    verify_model_folder(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / SHARD).unlink()
    for read in (verify_model_folder, open_checkpoint):
        with pytest.raises(UserError, match=f"{SHARD}, which is missing"):
            read(folder)


@pytest.mark.parametrize(("change", "words"), [(-1, "cut short"), (1, "longer than it says")])
def test_a_wrong_size_is_named(folder: Path, change: int, words: str) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[:change] if change < 0 else data + b"x")
    for read in (verify_model_folder, open_checkpoint):
        with pytest.raises(UserError, match=words):
            read(folder)


def test_a_folder_without_checksums_cannot_be_verified(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    for broken in ({"weight_map": index["weight_map"]}, index | {"sha256": {"a": "b"}}):
        (folder / INDEX_FILE).write_text(json.dumps(broken))
        with pytest.raises(UserError, match="no checksums"):
            verify_model_folder(folder)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", "{}", '{"model_type": "gptj", "format": 1}', '{"model_type": "magma"}'],
)
def test_a_damaged_configuration_is_named(folder: Path, content: str) -> None:
    (folder / CONFIG_FILE).write_text(content)
    with pytest.raises(UserError, match=CONFIG_FILE):
        folder_config(folder)


def test_an_unknown_field_of_the_configuration_is_named(folder: Path) -> None:
    content = json.loads((folder / CONFIG_FILE).read_text())
    content["config"]["transformer"]["layer"] = 3
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match="'layer'; did you mean 'layers'"):
        folder_config(folder)
