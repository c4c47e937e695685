"""The files of a dataset of pictures and captions, in MAGMA's format: finding and checking them.

::

    root/images/<n>/<file>          pictures, at most 10,000 in a folder
    root/image_data/<m>/<k>.json    a sample: image_path (relative to root), captions, metadata
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from utils.errors import UserError

_log = logging.getLogger(__name__)


class BadSamples:
    """Samples that cannot be used: counted and named, or the end of the work.

    Attributes:
        lines: one for each.
    """

    def __init__(self, skip: bool) -> None:
        """``skip``: go on after a bad sample."""
        self.skip = skip
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Notes a bad sample.

        Raises:
            UserError: bad samples are not to be skipped.
        """
        if not self.skip:
            raise UserError(f"{line}; mend it, or leave such samples out with --skip_bad")
        self.lines.append(line)
        _log.warning("left out: %s", line)


def sample_files(root: Path) -> list[Path]:
    """The samples' JSON files, in the order of their numbers.

    Raises:
        UserError: no dataset or an empty one.
    """
    folder = root / "image_data"
    if not folder.is_dir():
        raise UserError(
            f"{root}: is no dataset, the folder image_data is missing; "
            "python -m training.convert_dataset makes one"
        )
    # By number, where the name is one: 2 before 10.
    files = sorted(folder.glob("*/*.json"), key=lambda path: _numbers(path, folder))
    if not files:
        raise UserError(f"{root}: the dataset is empty, image_data holds no */*.json")
    return files


def read_record(path: Path) -> dict[str, Any]:
    """What a sample's file says.

    Raises:
        UserError: it cannot be read, is no JSON, or lacks a list of captions.
    """
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed JSON: {error}") from error
    check_captions(path, record)
    if not isinstance(record.get("image_path", ""), str):
        raise UserError(f'{path}: "image_path" is no text')
    return dict(record)


def check_captions(where: Path, record: Any) -> None:
    """Checks the captions of a sample.

    Args:
        where: what errors name.
        record: what the sample's file says, or is to say.

    Raises:
        UserError: it has no list of texts as captions.
    """
    captions = record.get("captions") if isinstance(record, dict) else None
    if not isinstance(captions, list) or not captions:
        raise UserError(f'{where}: no "captions"; expected a list of texts')
    if not all(isinstance(caption, str) for caption in captions):
        raise UserError(f'{where}: "captions" holds something that is no text')
    try:
        "".join(captions).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f'{where}: "captions" holds text that is not valid: {error.reason}'
        ) from error


def picture_path(root: Path, path: Path, record: dict[str, Any]) -> Path:
    """Where a sample's picture lies; without an image_path, where its JSON lies.

    Args:
        root: of the dataset.
        path: the sample's file.
        record: what it says.

    Raises:
        UserError: the path leads out of the dataset, or to no file.
    """
    default = Path("images") / path.parent.name / f"{path.stem}.jpg"
    relative = Path(record.get("image_path", default))
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError(f'{path}: "image_path" {relative} leads out of the dataset')
    picture = root / relative
    if not os.path.isfile(picture):  # noqa: PTH113 - Path.is_file raises for some names
        raise UserError(f"{path}: its picture {picture} is missing")
    return picture


def _numbers(path: Path, folder: Path) -> tuple[tuple[int, str], ...]:
    parts = path.relative_to(folder).with_suffix("").parts
    return tuple((int(part) if part.isdecimal() else -1, part) for part in parts)
