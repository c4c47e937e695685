"""Datasets of other layouts, written in MAGMA's format (`utils.dataset_files`).

As a program it converts what people commonly have::

    python -m training.convert_dataset coco captions_val2017.json OUT --images val2017
    python -m training.convert_dataset vqa questions.json OUT --annotations a.json --images val2014
    python -m training.convert_dataset csv pairs.csv OUT
    python -m training.convert_dataset webdataset 'shards/*.tar' OUT
    python -m training.convert_dataset huggingface FOLDER_OR_NAME OUT
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image
from tqdm import tqdm

from training import sources
from utils.dataset_files import BadSamples
from utils.errors import UserError
from utils.files import atomic_file
from utils.images import load_image
from utils.log import default_level, setup_logging
from utils.program import run_program

Entry = tuple[Path, dict[str, Any]]
MODES = ("mv", "cp")


def convert_dataset(
    data_dir: str | os.PathLike[str],
    ds_iterator: Iterable[Entry],
    dir_size: int = 10_000,
    hash_fn: Callable[[Image.Image], Any] | None = None,
    mode: str = "mv",
    skip_bad: bool = False,
    bad: BadSamples | None = None,
) -> int:
    """Adds samples to a dataset; what it holds already stays.

    Args:
        data_dir: root of the dataset; made if missing.
        ds_iterator: pairs of a picture's path and its record, which has ``captions`` and may have
            ``metadata``. Any iterable. Several samples may have one picture, which is kept once.
        dir_size: pictures, and samples, in one folder at most.
        hash_fn: of the picture in RGB; its result becomes ``metadata["image_hash"]``.
        mode: "mv" moves the pictures, "cp" copies them.
        skip_bad: leave out samples that are bad, instead of stopping at the first.
        bad: where bad samples are noted; by default they are only logged.

    Returns:
        How many samples were added.

    Raises:
        UserError: a picture is missing or no picture, a record has no captions, the folder cannot
            be written, or there was no sample at all.
    """
    if mode not in MODES or dir_size < 1:
        raise UserError(f"mode is {mode!r}, dir_size {dir_size}; expected mv or cp, and 1 or more")
    bad = BadSamples(skip_bad) if bad is None else bad
    writer = _Writer(Path(data_dir), dir_size, hash_fn, mode)
    added = 0
    for path, record in tqdm(ds_iterator, desc=str(data_dir), unit="sample", disable=None):
        try:
            writer.check(Path(path), record)
        except UserError as error:
            bad.add(str(error))
            continue
        try:
            writer.add(Path(path), record)
        except OSError as error:
            raise UserError(f"{data_dir}: cannot write: {error.strerror} ({path})") from error
        added += 1
    if not added:
        all_bad = f"; all {len(bad.lines)} were bad, the first: {bad.lines[0]}" if bad.lines else ""
        raise UserError(f"{data_dir}: no samples to add{all_bad}")
    return added


class _Writer:
    """Puts pictures and records at the next free places of a dataset."""

    def __init__(
        self, root: Path, dir_size: int, hash_fn: Callable[[Image.Image], Any] | None, mode: str
    ) -> None:
        self._root, self._dir_size, self._hash_fn, self._mode = root, dir_size, hash_fn, mode
        try:
            for name in ("images", "image_data"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{root}: cannot make the dataset: {error.strerror}") from error
        # One above every number in use, so that nothing is overwritten.
        self._samples = 1 + max(map(_number, (root / "image_data").glob("*/*.json")), default=-1)
        self._pictures = sum(1 for _ in (root / "images").glob("*/*"))
        self._hashes: dict[Path, Any] = {}
        self._places: dict[Path, str] = {}

    def check(self, path: Path, record: dict[str, Any]) -> None:
        """Raises UserError if the record or the picture is bad; nothing is written."""
        captions = record.get("captions") if isinstance(record, dict) else None
        if not isinstance(captions, list) or not captions:
            raise UserError(f'{path}: its record has no "captions"; expected a list of texts')
        if not all(isinstance(caption, str) for caption in captions):
            raise UserError(f'{path}: "captions" holds something that is no text')
        if not isinstance(record.get("metadata") or {}, dict):
            raise UserError(f'{path}: "metadata" is no mapping')
        try:
            json.dumps(record)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: its record cannot be written as JSON: {error}") from error
        if path.absolute() not in self._hashes:
            image = load_image(path)  # decoded as a whole, so that only pictures get in
            image_hash = None if self._hash_fn is None else self._hash_fn(image.convert("RGB"))
            self._hashes[path.absolute()] = image_hash

    def add(self, path: Path, record: dict[str, Any]) -> None:
        """Writes a sample that was checked."""
        source = path.absolute()
        if source not in self._places:
            self._places[source] = self._place(path)
        metadata = dict(record.get("metadata") or {})
        if self._hash_fn is not None:
            metadata["image_hash"] = self._hashes[source]
        written = {**record, "image_path": self._places[source], "metadata": metadata}
        folder = self._root / "image_data" / str(self._samples // self._dir_size)
        folder.mkdir(exist_ok=True)
        with atomic_file(folder / f"{self._samples}.json") as file:
            file.write(json.dumps(written).encode())
        self._samples += 1

    def _place(self, path: Path) -> str:
        """Brings a picture into the dataset; returns its path there."""
        folder = self._root / "images" / str(self._pictures // self._dir_size)
        folder.mkdir(exist_ok=True)
        target = folder / path.name
        if target.exists():  # pictures of different folders may share a name
            target = folder / f"{path.stem}_{self._pictures}{path.suffix}"
        move = shutil.move if self._mode == "mv" else shutil.copyfile
        move(str(path), target)
        self._pictures += 1
        return target.relative_to(self._root).as_posix()


def _number(path: Path) -> int:
    return int(path.stem) if path.stem.isdecimal() else -1


# ---- program ------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parser() -> _Parser:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=sorted(_READERS), help="layout of SOURCE")
    parser.add_argument("source", metavar="SOURCE", help="file, folder, pattern or name to read")
    parser.add_argument("out", metavar="OUT", help="root folder of the dataset, new or existing")
    parser.add_argument("--images", metavar="FOLDER", help="pictures of coco, vqa and csv")
    parser.add_argument("--annotations", metavar="FILE", help="answers of vqa")
    parser.add_argument("--split", default="train", help="of a Hugging Face dataset")
    parser.add_argument("--image_column", default="image", help="of csv or Hugging Face")
    parser.add_argument("--caption_column", default="caption", help="of csv or Hugging Face")
    parser.add_argument("--move", action="store_true", help="move pictures instead of copying")
    parser.add_argument("--dir_size", type=int, default=10_000, help="files in one folder at most")
    parser.add_argument("--skip_bad", action="store_true", help="leave out what is broken, and say")
    return parser


def _coco(options: argparse.Namespace, bad: BadSamples) -> Iterator[Entry]:
    return sources.coco_captions(Path(options.source), _folder(options), bad.add)


def _vqa(options: argparse.Namespace, bad: BadSamples) -> Iterator[Entry]:
    if options.annotations is None:
        raise UserError("vqa needs --annotations, the file with the answers")
    annotations = Path(options.annotations)
    return sources.vqa(Path(options.source), annotations, _folder(options), bad.add)


def _csv(options: argparse.Namespace, bad: BadSamples) -> Iterator[Entry]:
    source = Path(options.source)
    folder = Path(options.images) if options.images else source.parent
    columns = (options.image_column, options.caption_column)
    return sources.csv_pairs(source, folder, columns, bad.add)


def _webdataset(options: argparse.Namespace, bad: BadSamples) -> Iterator[Entry]:
    return sources.webdataset(options.source, bad.add)


def _huggingface(options: argparse.Namespace, bad: BadSamples) -> Iterator[Entry]:
    columns = (options.image_column, options.caption_column)
    return sources.huggingface(options.source, options.split, columns, bad.add)


_READERS: dict[str, Callable[[argparse.Namespace, BadSamples], Iterator[Entry]]] = {
    "coco": _coco,
    "csv": _csv,
    "huggingface": _huggingface,
    "vqa": _vqa,
    "webdataset": _webdataset,
}

# Readers that unpack pictures into files of their own, which are moved on.
_UNPACKED = ("webdataset", "huggingface")


def _folder(options: argparse.Namespace) -> Path:
    if options.images is None:
        raise UserError(f"{options.format} needs --images, the folder with the pictures")
    if not Path(options.images).is_dir():
        raise UserError(f"--images {options.images}: no such folder")
    return Path(options.images)


def _run(argv: Sequence[str] | None) -> None:
    options = _parser().parse_args(argv)
    setup_logging(default_level())
    bad = BadSamples(options.skip_bad)
    entries = _READERS[options.format](options, bad)
    mode = "mv" if options.move or options.format in _UNPACKED else "cp"
    added = convert_dataset(options.out, entries, options.dir_size, mode=mode, bad=bad)
    print(f"{options.out}: {added} samples added, {len(bad.lines)} left out")


def main(argv: Sequence[str] | None = None) -> int:
    """Converts as the command line says; returns the exit status."""
    return run_program(lambda: _run(argv))


if __name__ == "__main__":
    sys.exit(main())
