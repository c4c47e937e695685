"""Readers of common layouts of pictures with texts, for `training.convert_dataset`.

Each gives pairs of a picture's path and its record (``captions``, ``metadata``), one after the
other, and tells what is wrong with the others by calling ``bad`` with a line for each.
"""

from __future__ import annotations

import csv
import itertools
import json
import lzma
import re
import tarfile
import tempfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from utils.errors import UserError

Entry = tuple[Path, dict[str, Any]]
Bad = Callable[[str], None]

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_MEMBER_BYTES = 1 << 30
"""Largest member of a tar that is read."""

USUAL_COLUMNS = (
    ("image", "path", "image_path", "file_name", "filename", "file"),
    ("caption", "captions", "text"),
)
"""Names of the columns of pictures, and of captions."""

Columns = tuple[str | None, str | None]
"""Those two as given; None for a usual one."""


def coco_captions(path: Path, images: Path, bad: Bad) -> Iterator[Entry]:
    """COCO's captions file: ``images`` (id, file_name) and ``annotations`` (image_id, caption).

    Raises:
        UserError: no such file.
    """
    content = _read_json(path, ("images", "annotations"))
    captions: defaultdict[Any, list[str]] = defaultdict(list)
    names = _by_id(path, "images", content["images"], ("id", "file_name"), bad)
    for image_id, caption in _fields(
        path, "annotations", content["annotations"], ("image_id", "caption"), bad
    ):
        if image_id not in names:
            bad(f"{path}: a caption is for picture {image_id!r}, which images lacks")
        elif not isinstance(caption, str):
            bad(f"{path}: the caption of picture {image_id!r} is no text")
        else:
            captions[image_id].append(caption.strip())
    for image_id, texts in captions.items():
        picture = _inside(images, names[image_id])
        if picture is None:
            bad(f"{path}: picture {image_id!r} has no name of a file in {images}")
        else:
            yield picture, {"captions": texts, "metadata": {"image_id": image_id}}


def vqa(questions: Path, annotations: Path, images: Path, bad: Bad) -> Iterator[Entry]:
    """VQAv2's two files. A caption is ``Q: <question> A: <the most frequent answer>``.

    The metadata keeps the question and all its answers. Pictures are called
    ``COCO_<data_subtype>_<image id, 12 digits>.jpg``, or ``<12 digits>.jpg``.

    Raises:
        UserError: no such files, or a data_subtype that is no name.
    """
    content = _read_json(questions, ("questions",))
    answers_file = _read_json(annotations, ("annotations",))
    subtype = str(content.get("data_subtype", ""))
    if not re.fullmatch(r"[\w-]*", subtype):  # pictures are taken from their folder only
        raise UserError(f'{questions}: "data_subtype" is {subtype!r}; expected such as val2014')
    keys = ("question_id", "answers")
    answers = _by_id(annotations, "annotations", answers_file["annotations"], keys, bad)
    keys3 = ("question_id", "image_id", "question")
    for number, image_id, question in _fields(
        questions, "questions", content["questions"], keys3, bad
    ):
        given = _answer_texts(answers.get(number))
        if not given or not isinstance(question, str) or not isinstance(image_id, int):
            bad(f"{questions}: question {number!r} has no text, no picture or no answers")
            continue
        best = Counter(given).most_common(1)[0][0]
        names = (f"COCO_{subtype}_{image_id:012d}.jpg", f"{image_id:012d}.jpg")
        metadata = {
            "image_id": image_id,
            "question_id": number,
            "question": question,
            "answers": given,
        }
        picture = next((images / n for n in names if (images / n).is_file()), images / names[0])
        yield picture, {"captions": [f"Q: {question} A: {best}"], "metadata": metadata}


def _answer_texts(answers: Any) -> list[str]:
    if not isinstance(answers, list):
        return []
    texts = [entry.get("answer") for entry in answers if isinstance(entry, dict)]
    return [text for text in texts if isinstance(text, str) and text]


def csv_pairs(path: Path, images: Path, columns: Columns, bad: Bad) -> Iterator[Entry]:
    """A table with a column of paths, relative to ``images``, and one of captions.

    The first row names the columns; without usual names in it, the table has just these two.
    Rows of one picture are joined.

    Raises:
        UserError: no such file, or no such columns.
    """
    captions: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            for number, row in enumerate(_two_columns(path, rows, columns), start=1):
                if row is None or not all(cell.strip() for cell in row):
                    bad(f"{path}: row {number} has no path or no caption")
                else:
                    captions.setdefault(row[0].strip(), []).append(row[1].strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8; save it as such ({error.reason})") from error
    except (OSError, csv.Error) as error:
        raise UserError(f"{path}: cannot read the table: {error}") from error
    for name, texts in captions.items():
        picture = _inside(images, name)
        if picture is None:
            bad(f"{path}: {name} is outside of {images}")
        else:
            yield picture, {"captions": texts, "metadata": {"path": name}}


def _two_columns(
    path: Path, rows: Iterator[list[str]], columns: Columns
) -> Iterator[tuple[str, str] | None]:
    """Path and caption of each row that is not empty; None where a cell is missing."""
    first = next(rows, [])
    places = _find_columns(path, first, columns)
    below = rows
    if places is None:
        places, below = (0, 1), itertools.chain([first], rows)
    for row in below:
        if row:
            yield (row[places[0]], row[places[1]]) if len(row) > max(places) else None


def _find_columns(
    source: str | Path, present: Sequence[str], columns: Columns
) -> tuple[int, int] | None:
    """Which columns have pictures and captions; None where no name is given and none is usual.

    Raises:
        UserError: one of the two is not there.
    """
    names = [name.strip().lower() for name in present]
    wanted = [
        usual if given is None else (given.lower(),)
        for given, usual in zip(columns, USUAL_COLUMNS, strict=True)
    ]
    image, caption = (next((names.index(n) for n in ns if n in names), None) for ns in wanted)
    if image is not None and caption is not None:
        return image, caption
    if image is None and caption is None and columns == (None, None):
        return None
    raise _no_columns(source, present)


def _no_columns(source: str | Path, present: Sequence[str]) -> UserError:
    return UserError(
        f"{source}: its columns are {', '.join(present)}; name two of them with "
        "--image_column and --caption_column"
    )


def webdataset(pattern: str, bad: Bad) -> Iterator[Entry]:
    """Tar files whose members of one name but for the suffix are a sample.

    A sample has a picture, and its captions in ``.txt`` or in ``.json`` under "caption" or
    "captions". Members of a sample stand together, as the format wants it.

    Raises:
        UserError: no file of that pattern, or a damaged one.
    """
    files = sorted(Path(pattern).parent.glob(Path(pattern).name))
    if not files:
        raise UserError(f"{pattern}: no such tar file")
    with tempfile.TemporaryDirectory(prefix="magma-") as folder:
        for name in files:
            for number, (key, parts) in enumerate(_tar_samples(name, bad)):
                # Named by us, as a member's own path may lead anywhere, but so that one knows it.
                safe = re.sub(r"[^\w-]+", "_", f"{name.stem}_{key}")[-100:]
                yield from _tar_sample(
                    f"{name}: {key}", parts, Path(folder) / f"{safe}_{number}", bad
                )


def _tar_samples(name: Path, bad: Bad) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(name, suffix to content) of each sample; of a damaged file, of those before the damage."""
    try:
        with tarfile.open(name) as tar:
            yield from _members(tar)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        bad(f"{name}: cannot read the tar file: {error}")


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    key = ""
    parts: dict[str, bytes] = {}
    for member in tar:
        if not member.isfile() or member.size > _MEMBER_BYTES:
            continue
        path = PurePosixPath(member.name)
        base, _, suffix = path.name.partition(".")
        found = str(path.with_name(base)) if base else member.name
        if found != key and parts:
            yield key, parts
            parts = {}
        key = found
        file = tar.extractfile(member)
        assert file is not None, "plain files can be read"
        parts[f".{suffix.lower()}"] = file.read()
    if parts:
        yield key, parts


def _tar_sample(name: str, parts: dict[str, bytes], picture: Path, bad: Bad) -> Iterator[Entry]:
    suffix = next((suffix for suffix in parts if suffix in _PICTURE_SUFFIXES), None)
    try:
        record = json.loads(parts[".json"]) if ".json" in parts else {}
        found = record.get("captions", record.get("caption"))
        if ".txt" in parts:
            found = parts[".txt"].decode("utf-8").strip()
    except (ValueError, AttributeError, RecursionError) as error:
        bad(f"{name}: malformed JSON or text: {error}")
        return
    if suffix is None or not found:
        bad(f"{name}: has no {'picture' if suffix is None else 'caption'}")
        return
    picture = picture.with_suffix(suffix)
    with _unpacking(picture):
        picture.write_bytes(parts[suffix])
    yield picture, {"captions": found if isinstance(found, list) else [found], "metadata": record}


@contextmanager
def _unpacking(picture: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{picture}: cannot unpack the picture: {error.strerror}") from error


def huggingface(source: str, split: str, columns: Columns, bad: Bad) -> Iterator[Entry]:
    """A dataset of the library ``datasets``: saved in a folder, or by name on the hub.

    Raises:
        UserError: the library or the dataset is missing, or it lacks the columns.
    """
    rows = _open_huggingface(source, split)
    found = _find_columns(source, rows.column_names, columns)
    if found is None:
        raise _no_columns(source, rows.column_names)
    image_column, caption_column = (rows.column_names[place] for place in found)
    with tempfile.TemporaryDirectory(prefix="magma-") as folder:
        for number in range(len(rows)):
            try:
                row = rows[number]
            except Exception as error:  # decoding a picture fails in many ways
                bad(f"{source}: row {number}: {' '.join(str(error).split())[:120]}")
                continue
            image, texts = row[image_column], row[caption_column]
            if not isinstance(image, Image.Image) or not texts:
                bad(f"{source}: row {number} has no picture or no caption")
                continue
            picture = Path(folder) / f"{number}.png"
            with _unpacking(picture):
                _as_rgb(image).save(picture)
            yield picture, {"captions": texts if isinstance(texts, list) else [texts]}


def _as_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode in ("RGB", "L", "RGBA", "P", "1", "LA") else image.convert("RGB")


def _open_huggingface(source: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("Hugging Face datasets need a library: pip install datasets") from error
    try:
        if (Path(source) / "dataset_info.json").is_file():
            return datasets.load_from_disk(source)
        if (Path(source) / "dataset_dict.json").is_file():
            parts = datasets.load_from_disk(source)
            if split not in parts:
                raise UserError(f"{source}: has no split {split!r}; it has {', '.join(parts)}")
            return parts[split]
        return datasets.load_dataset(source, split=split)
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: cannot open the dataset, split {split!r}: {reason}") from error


def _read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed JSON: {error}") from error
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f'{path}: has no list "{key}"')
    return dict(content)


def _by_id(
    path: Path, what: str, entries: list[Any], keys: tuple[str, str], bad: Bad
) -> dict[Any, Any]:
    """The second key's values by the first's."""
    found: dict[Any, Any] = {}
    for key, value in _fields(path, what, entries, keys, bad):
        if found.setdefault(key, value) != value:
            bad(f'{path}: "{what}" has {keys[0]} {key!r} twice, with different {keys[1]}')
    return found


def _fields(
    path: Path, what: str, entries: list[Any], keys: tuple[str, ...], bad: Bad
) -> Iterator[tuple[Any, ...]]:
    """The values of some keys, of each entry that has them all."""
    for number, entry in enumerate(entries):
        complete = isinstance(entry, dict) and all(key in entry for key in keys)
        if complete and isinstance(entry[keys[0]], int | str):
            yield tuple(entry[key] for key in keys)
        else:
            bad(f'{path}: "{what}" {number} lacks {" or ".join(keys)}')


def _inside(folder: Path, name: Any) -> Path | None:
    """The file of that name in a folder; None for what is no name or leads out of it."""
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    path = Path(name)
    return None if path.is_absolute() or ".." in path.parts else folder / path
