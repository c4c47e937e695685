"""Readers of common layouts of pictures with texts, for `training.convert_dataset`.

Each gives pairs of a picture's path and its record (``captions``, ``metadata``), one after the
other, and tells what is wrong with the others by calling ``bad`` with a line for each.
"""

from __future__ import annotations

import csv
import itertools
import json
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from utils.errors import UserError

Entry = tuple[Path, dict[str, Any]]
Bad = Callable[[str], None]

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_MEMBER_BYTES = 1 << 30
"""Largest member of a tar that is read."""


def coco_captions(path: Path, images: Path, bad: Bad) -> Iterator[Entry]:
    """COCO's captions file: ``images`` (id, file_name) and ``annotations`` (image_id, caption).

    Raises:
        UserError: no such file.
    """
    content = _read_json(path, ("images", "annotations"))
    captions: defaultdict[Any, list[str]] = defaultdict(list)
    names = dict(_fields(path, "images", content["images"], ("id", "file_name"), bad))
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
        UserError: no such files.
    """
    content = _read_json(questions, ("questions",))
    answers_file = _read_json(annotations, ("annotations",))
    subtype = str(content.get("data_subtype", ""))
    keys = ("question_id", "answers")
    answers = dict(_fields(annotations, "annotations", answers_file["annotations"], keys, bad))
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


def csv_pairs(path: Path, images: Path, columns: tuple[str, str], bad: Bad) -> Iterator[Entry]:
    """A table with a column of paths, relative to ``images``, and one of captions.

    The first row names the columns; without the two names, the table has just these two columns.
    Rows of one picture are joined.

    Raises:
        UserError: no such file.
    """
    captions: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(_two_columns(csv.reader(file), columns), start=1):
                if row is None or not all(cell.strip() for cell in row):
                    bad(f"{path}: row {number} has no path or no caption")
                else:
                    captions.setdefault(row[0].strip(), []).append(row[1].strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot read the table: {error}") from error
    for name, texts in captions.items():
        picture = _inside(images, name)
        if picture is None:
            bad(f"{path}: {name} is outside of {images}")
        else:
            yield picture, {"captions": texts, "metadata": {"path": name}}


def _two_columns(
    rows: Iterable[list[str]], columns: tuple[str, str]
) -> Iterator[tuple[str, str] | None]:
    places = (0, 1)
    for number, row in enumerate(rows):
        if number == 0 and all(name in row for name in columns):
            places = (row.index(columns[0]), row.index(columns[1]))
        elif row:
            complete = len(row) > max(places)
            yield (row[places[0]], row[places[1]]) if complete else None


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
        pictures = (Path(folder) / str(number) for number in itertools.count())
        for name in files:
            try:
                with tarfile.open(name) as tar:
                    for key, parts in _tar_samples(tar):
                        yield from _tar_sample(f"{name}: {key}", parts, next(pictures), bad)
            except (tarfile.TarError, OSError, EOFError) as error:
                raise UserError(f"{name}: cannot read the tar file: {error}") from error


def _tar_samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(name, suffix to content) of each sample."""
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
    # Named by us: a member's own path may lead anywhere.
    picture = picture.with_suffix(suffix)
    picture.write_bytes(parts[suffix])
    yield picture, {"captions": found if isinstance(found, list) else [found], "metadata": record}


def huggingface(source: str, split: str, columns: tuple[str, str], bad: Bad) -> Iterator[Entry]:
    """A dataset of the library ``datasets``: saved in a folder, or by name on the hub.

    Raises:
        UserError: the library or the dataset is missing, or it lacks the columns.
    """
    rows = _open_huggingface(source, split)
    image_column, caption_column = columns
    present = rows.column_names
    if not set(columns) <= set(present):
        raise UserError(
            f"{source}: its columns are {', '.join(present)}; name two of them with "
            "--image_column and --caption_column"
        )
    with tempfile.TemporaryDirectory(prefix="magma-") as folder:
        for number in range(len(rows)):
            try:
                row = rows[number]
            except Exception as error:  # decoding a picture fails in many ways
                bad(f"{source}: row {number}: {' '.join(str(error).split())[:120]}")
                continue
            image, found = row[image_column], row[caption_column]
            if not isinstance(image, Image.Image) or not found:
                bad(f"{source}: row {number} has no picture or no caption")
                continue
            picture = Path(folder) / f"{number}.png"
            _as_rgb(image).save(picture)
            yield picture, {"captions": found if isinstance(found, list) else [found]}


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
            return datasets.load_from_disk(source)[split]
        return datasets.load_dataset(source, split=split)
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
