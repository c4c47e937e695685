"""Datasets of other layouts, written in MAGMA's format (`utils.dataset_files`).

`convert_dataset` takes any iterator of pictures and records; as a program
(``python -m training.convert_dataset --help``) this reads the layouts of `training.sources`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_quietly

    end_quietly()  # if Ctrl-C comes during the imports below

import argparse
import filecmp
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from training import sources
from utils.dataset_files import BadSamples, check_captions, read_record
from utils.errors import UserError
from utils.files import atomic_file
from utils.images import load_image
from utils.log import check_level, default_level, setup_logging
from utils.program import ProgramParser, run_program

_log = logging.getLogger(__name__)

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
    """Adds samples to a dataset. What it holds already stays, and is not added again.

    So a conversion that was stopped is finished by the same call.

    Args:
        data_dir: root of the dataset; made if missing.
        ds_iterator: pairs of a picture's path and its record, which has ``captions`` and may have
            ``metadata``. Any iterable. Several samples may have one picture, which is kept once.
        dir_size: pictures, and samples, in one folder at most.
        hash_fn: of the picture in RGB; its result becomes ``metadata["image_hash"]``.
        mode: "mv" moves the pictures, "cp" copies them. Those in its ``images`` stay.
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
    added = there = 0
    for path, record in tqdm(ds_iterator, desc=str(data_dir), unit="sample", disable=None):
        try:
            is_new = writer.check(Path(path), record)
        except UserError as error:
            bad.add(str(error))
            continue
        if is_new:
            try:
                writer.add(Path(path), record)
            except OSError as error:
                raise UserError(f"{data_dir}: cannot write: {error.strerror} ({path})") from error
        added += is_new
        there += not is_new
    if there:
        _log.info("%s: %d samples were there already", data_dir, there)
    if not added and not there:
        all_bad = f"; all {len(bad.lines)} were bad, the first: {bad.lines[0]}" if bad.lines else ""
        raise UserError(f"{data_dir}: no samples to add{all_bad}")
    return added


class _Writer:
    """Puts pictures and records at the next free places of a dataset."""

    def __init__(
        self, root: Path, dir_size: int, hash_fn: Callable[[Image.Image], Any] | None, mode: str
    ) -> None:
        self._root, self._dir_size, self._hash_fn, self._mode = root, dir_size, hash_fn, mode
        self._own = (root / "images").resolve()
        present = list((root / "image_data").glob("*/*.json"))
        # One above every number in use, so that nothing is overwritten.
        self._samples = 1 + max(map(_number, present), default=-1)
        self._pictures = sum(1 for _ in (root / "images").glob("*/*"))
        self._hashes: dict[Path, Any] = {}
        self._places: dict[Path, str] = {}
        # Pictures of the samples that were there before, by what their records say.
        self._before: defaultdict[bytes, list[str]] = defaultdict(list)
        for path in tqdm(present, desc=f"{root}: what is there", unit="sample", disable=None):
            try:
                record = read_record(path)
            except UserError:  # whoever reads the dataset will be told
                continue
            self._before[_digest(record)].append(record.get("image_path", ""))

    def check(self, path: Path, record: dict[str, Any]) -> bool:
        """Raises UserError if record or picture are bad; returns whether the sample is new."""
        check_captions(path, record)
        if not all(caption.strip() for caption in record["captions"]):
            raise UserError(f"{path}: has an empty caption")
        if not isinstance(record.get("metadata") or {}, dict):
            raise UserError(f'{path}: "metadata" is no mapping')
        try:
            digest = _digest(record)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: its record cannot be written as JSON: {error}") from error
        source = path.absolute()
        for place in self._before.get(digest, ()):
            if self._is_picture_of(source, place):
                self._places[source] = place
                self._drop(source)
                return False
        if source not in self._hashes:
            # Decoded as a whole, so that only pictures get in.
            known = self._places.get(source)
            image = load_image(path if known is None else self._root / known)
            image_hash = None if self._hash_fn is None else self._hash_fn(image.convert("RGB"))
            self._hashes[source] = image_hash
        return True

    def _is_picture_of(self, source: Path, place: str) -> bool:
        target = self._root / place
        if Path(place).is_absolute() or ".." in Path(place).parts:
            return False
        if not os.path.isfile(target):  # noqa: PTH113 - Path.is_file raises for some names
            return False
        if os.path.isfile(source):  # noqa: PTH113
            return filecmp.cmp(source, target, shallow=False)
        # It was moved here before.
        name = rf"{re.escape(source.stem)}(_\d+)?{re.escape(source.suffix)}"
        return self._mode == "mv" and re.fullmatch(name, target.name) is not None

    def add(self, path: Path, record: dict[str, Any]) -> None:
        """Writes a sample that was checked; a kill in between loses nothing."""
        source = path.absolute()
        if source not in self._places:
            self._places[source] = self._place(path)
        metadata = dict(record.get("metadata") or {})
        if self._hash_fn is not None:
            metadata["image_hash"] = self._hashes[source]
        written = {**record, "image_path": self._places[source], "metadata": metadata}
        folder = self._root / "image_data" / str(self._samples // self._dir_size)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / f"{self._samples}.json") as file:
            file.write(json.dumps(written).encode())
        self._samples += 1
        self._drop(source)

    def _place(self, path: Path) -> str:
        """Brings a picture into the dataset; returns its path there."""
        if self._is_own(path):
            return (Path("images") / path.resolve().relative_to(self._own)).as_posix()
        folder = self._root / "images" / str(self._pictures // self._dir_size)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / path.name
        numbers = count(self._pictures)
        while os.path.lexists(target):  # pictures of different folders may share a name
            target = folder / f"{path.stem}_{next(numbers)}{path.suffix}"
        try:
            if self._mode == "cp" or path.is_symlink():
                raise OSError
            target.hardlink_to(path)
        except OSError:  # such as another file system
            shutil.copyfile(path, target)
        self._pictures += 1
        return target.relative_to(self._root).as_posix()

    def _drop(self, source: Path) -> None:
        """Ends a move, once the picture's sample is written."""
        if self._mode == "mv" and not self._is_own(source):
            source.unlink(missing_ok=True)

    def _is_own(self, source: Path) -> bool:
        """Whether it lies in the dataset already, where other samples may have it."""
        return source.resolve().is_relative_to(self._own)


def _digest(record: dict[str, Any]) -> bytes:
    """Of what a record says; where its picture lies, and the picture's hash, are left out."""
    metadata = {k: v for k, v in (record.get("metadata") or {}).items() if k != "image_hash"}
    text = json.dumps({**record, "image_path": "", "metadata": metadata})
    return hashlib.sha256(json.dumps(json.loads(text), sort_keys=True).encode()).digest()


def _number(path: Path) -> int:
    return int(path.stem) if path.stem.isdecimal() else -1


# ---- program ------------------------------------------------------------------------------------


_DESCRIPTION = """\
Write a dataset of pictures and captions in MAGMA's format, for train.py and evaluate.py.

  coco         captions_*.json of COCO; --images names the folder of its pictures
  vqa          VQAv2's questions; --annotations is the file of the answers, --images the pictures
  csv          a table with a column of paths, relative to --images or to the table, and one of
               captions; rows of one picture are joined
  webdataset   tar files; a sample is the members of one name: a picture, and a .txt or .json
  huggingface  a dataset of the library datasets: a folder or a name on the hub
"""

_EPILOG = """\
examples:
  python -m training.convert_dataset coco captions_val2017.json data/coco --images val2017
  python -m training.convert_dataset vqa questions.json data/vqa --annotations answers.json \\
      --images val2014
  python -m training.convert_dataset csv pairs.csv data/pairs
  python -m training.convert_dataset webdataset 'shards/*.tar' data/shards
  python -m training.convert_dataset huggingface FOLDER_OR_NAME data/hub --split validation

OUT gets images/<n>/<picture> and image_data/<m>/<k>.json, a sample each. An existing dataset is
added to; samples that are there already are left as they are, so that the same command finishes
a conversion that was stopped. Wrong input ends with one line "error: ..." and status 2.
"""


def _parser() -> ProgramParser:
    parser = ProgramParser(
        prog="python -m training.convert_dataset", description=_DESCRIPTION, epilog=_EPILOG
    )
    formats = sorted(_READERS)
    parser.add_argument("format", metavar="FORMAT", choices=formats, help=", ".join(formats))
    parser.add_argument("source", metavar="SOURCE", help="file, folder, pattern or name to read")
    parser.add_argument("out", metavar="OUT", help="root folder of the dataset, new or existing")
    parser.add_argument("--images", metavar="FOLDER", help="pictures of coco, vqa and csv")
    parser.add_argument("--annotations", metavar="FILE", help="answers of vqa")
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="of huggingface (default: train)"
    )
    for name, usual in zip(("image", "caption"), sources.USUAL_COLUMNS, strict=True):
        text = f"of csv and huggingface (default: the first of {', '.join(usual)} that is there)"
        parser.add_argument(f"--{name}_column", metavar="NAME", help=text)
    parser.add_argument("--move", action="store_true", help="move pictures instead of copying")
    parser.add_argument(
        "--dir_size",
        type=int,
        default=10_000,
        metavar="N",
        help="files in one folder at most (default: 10000)",
    )
    parser.add_argument("--skip_bad", action="store_true", help="leave out what is broken, and say")
    parser.add_argument("--log_level", metavar="LEVEL", default=default_level())
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


def _run(argv: Sequence[str]) -> None:
    options = _parser().parse_args(argv)
    setup_logging(check_level(options.log_level))
    bad = BadSamples(options.skip_bad)
    entries = _READERS[options.format](options, bad)
    mode = "mv" if options.move or options.format in _UNPACKED else "cp"
    added = convert_dataset(options.out, entries, options.dir_size, mode=mode, bad=bad)
    print(f"{options.out}: {added} samples added, {len(bad.lines)} left out")


def main(argv: Sequence[str] | None = None) -> int:
    """Converts as the command line says; returns the exit status."""
    return run_program(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
