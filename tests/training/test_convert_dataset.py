"""Datasets written by convert_dataset, and its program, from every layout it knows."""

from __future__ import annotations

import bz2
import csv
import gc
import gzip
import io
import json
import lzma
import random
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import convert_dataset as module
from training.convert_dataset import convert_dataset, main
from training.dataset import ImgCptDataset
from utils.errors import UserError


def picture(rng: np.random.Generator, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def pictures(rng, tmp_path: Path) -> list[Path]:
    """Five pictures in two folders, with equal names across them."""
    return [picture(rng, tmp_path / "source" / str(k % 2) / f"{k // 2}.png") for k in range(5)]


def records(root: Path) -> list[dict]:
    """Every record of a dataset, in the order of its number."""
    paths = sorted((root / "image_data").glob("*/*.json"), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in paths]


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def described(paths: list[Path]) -> Iterator[tuple[Path, dict]]:
    """A generator, which has no length."""
    for k, path in enumerate(paths):
        yield path, {"captions": [f"caption {k}", "another"], "metadata": {"k": k}}


@pytest.mark.parametrize("mode", ["mv", "cp"])
def test_what_goes_in_comes_out(pictures, tmp_path: Path, tokenizer, mode):
    contents = [pixels(path) for path in pictures]
    root = tmp_path / "data"
    assert convert_dataset(root, described(pictures), mode=mode) == 5
    written = records(root)
    assert [record["captions"][0] for record in written] == [f"caption {k}" for k in range(5)]
    assert [record["metadata"] for record in written] == [{"k": k} for k in range(5)]
    assert [pixels(root / record["image_path"]) for record in written] == contents
    assert [path.exists() for path in pictures] == [mode == "cp"] * 5
    dataset = ImgCptDataset(root, tokenizer, 32, 16)
    assert len(dataset) == 5
    captions = {tokenizer.decode(dataset.sample(3, random.Random(k)).ids) for k in range(20)}
    assert captions == {"caption 3", "another"}


def test_folders_hold_as_many_files_as_they_may(pictures, tmp_path: Path):
    convert_dataset(tmp_path / "data", described(pictures), dir_size=2, mode="cp")
    found = {str(p.relative_to(tmp_path / "data")) for p in (tmp_path / "data").rglob("*.*")}
    numbers = {f"image_data/{k // 2}/{k}.json" for k in range(5)}
    assert numbers < found
    images = sorted(Path(name).parent.as_posix() for name in found - numbers)
    assert images == ["images/0", "images/0", "images/1", "images/1", "images/2"]


@pytest.mark.parametrize("mode", ["mv", "cp"])
def test_a_second_conversion_adds_what_is_not_there(pictures, tmp_path: Path, mode):
    root = tmp_path / "data"
    contents = [pixels(path) for path in pictures]
    described_twice = [*described(pictures), (pictures[4], {"captions": ["of the last, too"]})]
    assert convert_dataset(root, described_twice[:3], dir_size=2, mode=mode) == 3
    before = records(root)
    assert convert_dataset(root, described_twice, dir_size=2, mode=mode) == 3
    after = records(root)
    assert after[:3] == before
    assert [pixels(root / record["image_path"]) for record in after] == [*contents, contents[4]]
    assert convert_dataset(root, described_twice, dir_size=2, mode=mode) == 0
    assert records(root) == after
    assert len(list((root / "images").glob("*/*"))) == 5
    assert [path.exists() for path in pictures] == [mode == "cp"] * 5


def test_equal_records_of_different_pictures_are_different_samples(pictures, tmp_path: Path):
    entries = [(path, {"captions": ["a cat"]}) for path in pictures]
    assert convert_dataset(tmp_path / "data", entries[:2], mode="cp") == 2
    assert convert_dataset(tmp_path / "data", entries, mode="cp") == 3


@pytest.mark.parametrize("mode", ["mv", "cp"])
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_conversion_stopped_at_any_write_is_finished_by_the_same_call(
    pictures, tmp_path: Path, monkeypatch, rng, mode, where
):
    class Stopped(BaseException):
        pass

    contents = [pixels(path) for path in pictures]
    stop_at, written = int(rng.integers(1, 5)), []
    ordinary = module.atomic_file

    @contextmanager
    def stopping(path):
        if where == "before" and len(written) == stop_at:
            raise Stopped
        with ordinary(path) as file:
            yield file
        written.append(path)
        if where == "after" and len(written) == stop_at:
            raise Stopped

    monkeypatch.setattr(module, "atomic_file", stopping)
    with pytest.raises(Stopped):
        convert_dataset(tmp_path / "data", described(pictures), mode=mode)
    monkeypatch.undo()
    assert convert_dataset(tmp_path / "data", described(pictures), mode=mode) == 5 - stop_at
    found = records(tmp_path / "data")
    assert [record["metadata"]["k"] for record in found] == list(range(5))
    assert [pixels(tmp_path / "data" / r["image_path"]) for r in found] == contents


def test_no_picture_takes_the_place_of_another(rng, tmp_path: Path):
    names = ("a/p_2.png", "a/p.png", "b/p.png")
    paths = [picture(rng, tmp_path / name) for name in names]
    contents = [pixels(path) for path in paths]
    root = tmp_path / "data"
    convert_dataset(root, described(paths))
    assert [pixels(root / record["image_path"]) for record in records(root)] == contents


def test_pictures_of_the_dataset_itself_are_not_moved_away(pictures, tmp_path: Path):
    root = tmp_path / "data"
    convert_dataset(root, described(pictures))
    own = [(root / record["image_path"], record) for record in records(root)]
    contents = [pixels(path) for path, _ in own]
    assert convert_dataset(root, own) == 0
    asked = ((path, {"captions": ["Q: What is this? A: a car"]}) for path, _ in own)
    assert convert_dataset(root, asked) == 5
    assert [pixels(root / record["image_path"]) for record in records(root)] == contents * 2
    assert len(list((root / "images").glob("*/*"))) == 5


def test_a_link_is_never_moved_into_a_dataset(pictures, tmp_path: Path):
    link = tmp_path / "link.png"
    link.symlink_to(pictures[0])
    convert_dataset(tmp_path / "data", described([link]), mode="mv")
    (brought,) = (tmp_path / "data" / "images").glob("*/*")
    assert not brought.is_symlink()
    assert pixels(brought) == pixels(pictures[0])
    assert not link.is_symlink()


def test_a_picture_of_several_samples_is_kept_once(pictures, tmp_path: Path):
    root = tmp_path / "data"
    twice = [(pictures[0], {"captions": ["a"]}), (pictures[0], {"captions": ["b"]})]
    convert_dataset(root, twice, hash_fn=lambda image: image.size)
    written = records(root)
    assert written[0]["image_path"] == written[1]["image_path"]
    assert len(list((root / "images").glob("*/*"))) == 1
    assert [record["metadata"] for record in written] == [{"image_hash": [50, 40]}] * 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, 'no "captions"'),
        ({"captions": []}, 'no "captions"'),
        ({"captions": "text"}, 'no "captions"'),
        ({"captions": [1]}, "no text"),
        ({"captions": ["a", " "]}, "has an empty caption"),
        ({"captions": ["\ud800"]}, "text that is not valid"),
        ({"captions": ["a"], "metadata": {"x": {1, 2}}}, "cannot be written as JSON"),
        ([], 'no "captions"'),
        ({"captions": ["a"], "metadata": "x"}, "is no mapping"),
    ],
)
def test_bad_records_stop_or_are_left_out(pictures, tmp_path: Path, record, message):
    entries = [(pictures[0], record), (pictures[1], {"captions": ["fine"]})]
    with pytest.raises(UserError, match=message):
        convert_dataset(tmp_path / "a", entries, mode="cp")
    assert convert_dataset(tmp_path / "b", entries, mode="cp", skip_bad=True) == 1
    assert [record["captions"] for record in records(tmp_path / "b")] == [["fine"]]


def test_bad_pictures_stop_or_are_left_out(pictures, tmp_path: Path, caplog):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(pictures[0].read_bytes()[:500])
    paths = [pictures[0], broken, tmp_path / "missing.jpg", tmp_path, pictures[1]]
    with pytest.raises(UserError, match=r"broken\.jpg.*--skip_bad"):
        convert_dataset(tmp_path / "a", described(paths), mode="cp")
    assert convert_dataset(tmp_path / "b", described(paths), mode="cp", skip_bad=True) == 2
    for name in ("broken.jpg", "missing.jpg", "is a folder"):
        assert name in caplog.text


def test_a_full_disk_is_no_bad_sample(pictures, tmp_path: Path, monkeypatch):
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(UserError, match="cannot write: No space left on device"):
        convert_dataset(tmp_path / "data", described(pictures), mode="cp", skip_bad=True)


def test_no_samples_are_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="no samples to add"):
        convert_dataset(tmp_path / "a", iter(()))
    with pytest.raises(UserError, match=r"no samples to add; all 1 were bad, the first: .*gone"):
        convert_dataset(tmp_path / "a", described([tmp_path / "gone"]), skip_bad=True)


# ---- the program --------------------------------------------------------------------------------


def lines(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    return found.out + "".join(line for line in found.err.splitlines(True) if "error" in line)


@pytest.fixture
def coco(pictures, tmp_path: Path) -> dict:
    """COCO's file of the five pictures: picture k has k + 1 captions."""
    names = [str(path.relative_to(tmp_path / "source")) for path in pictures]
    annotations = [
        {"image_id": 100 + k, "id": 10 * k + j, "caption": f" caption {k} {j}\n"}
        for k in range(5)
        for j in range(k + 1)
    ]
    images = [{"id": 100 + k, "file_name": name} for k, name in enumerate(names)]
    return {"images": images, "annotations": annotations}


def convert(tmp_path: Path, layout: str, source: object, *options: str) -> int:
    """Runs the program on a file of JSON."""
    path = tmp_path / "source.json"
    path.write_text(source if isinstance(source, str) else json.dumps(source))
    folder = str(tmp_path / "source")
    return main([layout, str(path), str(tmp_path / "data"), "--images", folder, *options])


def test_coco_captions(coco, pictures, tmp_path: Path, capsys):
    assert convert(tmp_path, "coco", coco) == 0
    written = records(tmp_path / "data")
    assert [len(record["captions"]) for record in written] == [1, 2, 3, 4, 5]
    assert written[1]["captions"] == ["caption 1 0", "caption 1 1"]
    assert written[1]["metadata"] == {"image_id": 101}
    assert pixels(tmp_path / "data" / written[3]["image_path"]) == pixels(pictures[3])
    assert "5 samples added, 0 left out" in lines(capsys)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["annotations"].append({"image_id": 7, "caption": "x"}), "picture 7"),
        (lambda c: c["annotations"].append({"image_id": 100}), "lacks image_id or caption"),
        (lambda c: c["annotations"].append(["x"]), "lacks image_id or caption"),
        (lambda c: c["annotations"].append({"image_id": [1], "caption": "x"}), "lacks image_id"),
        (lambda c: c["annotations"].append({"image_id": 100, "caption": 5}), "is no text"),
        (lambda c: c["images"][0].update(file_name="../../etc/passwd"), "picture 100"),
        (lambda c: c["images"][0].update(file_name="/etc/passwd"), "picture 100"),
        (lambda c: c["images"][0].update(file_name=3), "picture 100"),
        (lambda c: c["images"][0].update(file_name="no such.png"), "no such"),
        (lambda c: c["images"].append({"id": 100, "file_name": "x.png"}), "id 100 twice"),
        (lambda c: c["annotations"][0].update(caption=" "), "empty caption"),
    ],
)
def test_damaged_coco_files_stop_or_are_skipped_in_part(
    coco, tmp_path: Path, capsys, damage, message
):
    damage(coco)
    assert convert(tmp_path, "coco", coco) == 2
    assert message in lines(capsys)
    assert convert(tmp_path, "coco", coco, "--skip_bad") == 0
    assert "1 left out" in lines(capsys)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": {}}', '{"images": []}', "[" * 100_000])
def test_malformed_json_is_one_line(tmp_path: Path, capsys, text, pictures):
    assert convert(tmp_path, "coco", text) == 2
    found = lines(capsys)
    assert found.startswith("error: ")
    assert "source.json" in found
    assert found.count("\n") == 1


def test_vqa(rng, tmp_path: Path, capsys):
    shown = picture(rng, tmp_path / "source" / "COCO_val2014_000000000042.jpg")
    questions = {
        "data_subtype": "val2014",
        "questions": [
            {"question_id": 1, "image_id": 42, "question": "What is it?"},
            {"question_id": 2, "image_id": 42, "question": "How many?"},
        ],
    }
    answers = [[{"answer": a} for a in given] for given in (["cat", "dog", "cat"], ["2"])]
    annotations = [{"question_id": k, "answers": given} for k, given in enumerate(answers, 1)]
    (tmp_path / "answers.json").write_text(json.dumps({"annotations": annotations}))
    extra = ("--annotations", str(tmp_path / "answers.json"))
    assert convert(tmp_path, "vqa", questions, *extra) == 0
    written = records(tmp_path / "data")
    assert [r["captions"] for r in written] == [["Q: What is it? A: cat"], ["Q: How many? A: 2"]]
    assert written[0]["metadata"]["answers"] == ["cat", "dog", "cat"]
    assert {r["image_path"] for r in written} == {f"images/0/{shown.name}"}
    questions["questions"].append({"question_id": 3, "image_id": 42, "question": "Who?"})
    assert convert(tmp_path, "vqa", questions, *extra) == 2
    assert "question 3 has no text, no picture or no answers" in lines(capsys)
    assert convert(tmp_path, "vqa", questions) == 2
    assert "needs --annotations" in lines(capsys)
    for subtype in ("../../other", "a/b", "a\0b"):
        assert convert(tmp_path, "vqa", questions | {"data_subtype": subtype}, *extra) == 2
        assert '"data_subtype" is' in lines(capsys)


@pytest.mark.parametrize(
    ("header", "options"),
    [
        (None, ()),
        (("image", "caption"), ()),
        (("caption", "x", "image"), ()),
        (("Path", "Text"), ()),
        (("url", "caption", "b"), ("--image_column", "b")),
        (("b", "a", "caption"), ("--image_column", "a", "--caption_column", "b")),
    ],
)
def test_csv(pictures, tmp_path: Path, header, options):
    table = tmp_path / "source" / "pairs.csv"
    columns = header or ("image", "caption")
    image = options[1] if options else next(c for c in columns if c in ("image", "Path"))
    caption = options[3] if len(options) > 2 else None
    caption = caption or next(c for c in columns if c in ("caption", "Text"))
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        if header:
            rows.writerow(header)
        for k, path in enumerate([*pictures, pictures[0]]):
            cells = {image: path.relative_to(table.parent), caption: f"näher, {k}"}
            rows.writerow([cells.get(name, "-") for name in columns])
    assert main(["csv", str(table), str(tmp_path / "data"), *options]) == 0
    written = records(tmp_path / "data")
    assert [r["captions"] for r in written] == [
        ["näher, 0", "näher, 5"],
        *([f"näher, {k}"] for k in range(1, 5)),
    ]
    assert pixels(tmp_path / "data" / written[2]["image_path"]) == pixels(pictures[2])


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"image,what\na.png,x\n", (), "its columns are image, what; name two of them"),
        (b"a,b\na.png,x\n", ("--image_column", "c"), "its columns are a, b; name two of them"),
        (b"image,caption\na.png,caf\xe9\n", (), "is not UTF-8"),
        (b"image,caption\na.png\n", (), "row 1 has no path or no caption"),
        (b"image,caption\n../a.png,x\n", (), "is outside of"),
        (b"image,caption\n", (), "no samples to add"),
        (b"", (), "no samples to add"),
    ],
)
def test_wrong_tables_are_one_line(tmp_path: Path, capsys, content, options, message):
    (tmp_path / "a.csv").write_bytes(content)
    arguments = ["csv", str(tmp_path / "a.csv"), str(tmp_path / "data"), *options]
    assert main(arguments) == 2
    found = lines(capsys)
    assert message in found
    assert found.count("\n") == 1
    assert not (tmp_path / "data").exists()


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_webdataset(pictures, tmp_path: Path, capsys):
    data = [path.read_bytes() for path in pictures]
    tar(
        tmp_path / "shard-0.tar",
        {
            "../../a.png": data[0],
            "../../a.txt": b"first \n",
            "b.json": b'{"caption": "second", "width": 50}',
            "b.png": data[1],
        },
    )
    tar(tmp_path / "shard-1.tar", {"b.png": data[2], "b.json": b'{"captions": ["x", "y"]}'})
    assert main(["webdataset", str(tmp_path / "shard-*.tar"), str(tmp_path / "data")]) == 0
    written = records(tmp_path / "data")
    assert [r["captions"] for r in written] == [["first"], ["second"], ["x", "y"]]
    assert written[1]["metadata"]["width"] == 50
    found = [pixels(tmp_path / "data" / r["image_path"]) for r in written]
    assert found == [pixels(path) for path in pictures[:3]]
    assert "3 samples added" in lines(capsys)
    assert not list(tmp_path.parent.glob("a.png"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"no picture", "a.txt": b"x"}, "no picture that can be read"),
        ({"a.txt": b"x"}, "has no picture"),
        ({"a.png": b"x"}, "has no caption"),
        ({"a.png": b"x", "a.json": b"{"}, "malformed"),
        ({"a.png": b"x", "a.json": b"[]"}, "malformed"),
        ({"a.png": b"x", "a.txt": b"\xff"}, "malformed"),
    ],
)
def test_damaged_samples_of_tars(pictures, tmp_path: Path, capsys, members, message):
    good = {"z.png": pictures[0].read_bytes(), "z.txt": b"fine"}
    tar(tmp_path / "shard.tar", {**members, **good})
    arguments = ["webdataset", str(tmp_path / "shard.tar"), str(tmp_path / "data")]
    assert main(arguments) == 2
    found = lines(capsys)
    assert message in found
    assert "shard" in found  # the tar and the member, wherever it was unpacked
    assert "a" in found
    assert main([*arguments, "--skip_bad"]) == 0
    assert "1 samples added, 1 left out" in lines(capsys)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_of_a_damaged_tar_the_rest_is_kept_on_demand(pictures, tmp_path: Path, capsys, compress):
    members = {}
    for k in range(5):
        members |= {f"{k}.png": pictures[k].read_bytes(), f"{k}.txt": b"fine"}
    tar(tmp_path / "b.tar", members)
    content = bytearray(compress((tmp_path / "b.tar").read_bytes()))
    (tmp_path / "a.tar").write_bytes(content[: len(content) // 2])
    content[-600:-500] = b"\xff" * 100
    (tmp_path / "c.tar").write_bytes(content if compress is not bytes else b"x" * 2000)
    arguments = ["webdataset", str(tmp_path / "*.tar"), str(tmp_path / "data")]
    assert main(arguments) == 2
    assert "a.tar: cannot read the tar file" in lines(capsys)
    assert main([*arguments, "--skip_bad"]) == 0
    assert "2 left out" in lines(capsys)
    assert [r["captions"] for r in records(tmp_path / "data")].count(["fine"]) >= 5


def test_a_file_that_is_no_tar(tmp_path: Path, capsys):
    (tmp_path / "shard.tar").write_bytes(b"x" * 2000)
    assert main(["webdataset", str(tmp_path / "shard.tar"), str(tmp_path / "data")]) == 2
    assert "cannot read the tar file" in lines(capsys)
    assert main(["webdataset", str(tmp_path / "none.tar"), str(tmp_path / "data")]) == 2
    assert "no such tar file" in lines(capsys)


# The library's reader of tables leaves files open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::Warning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_hugging_face(pictures, tmp_path: Path, capsys, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = pictures[1].parent
    (folder / "metadata.csv").write_text('file_name,words\n0.png,a\n1.png,""\n')
    arguments = ["huggingface", str(folder), str(tmp_path / "data")]
    assert main(arguments) == 2
    assert "its columns are image, words" in lines(capsys)
    arguments += ["--caption_column", "words"]
    assert main(arguments) == 2
    assert "row 1 has no picture or no caption" in lines(capsys)
    assert main([*arguments, "--skip_bad"]) == 0
    (written,) = records(tmp_path / "data")
    assert written["captions"] == ["a"]
    assert pixels(tmp_path / "data" / written["image_path"]) == pixels(pictures[1])
    gc.collect()  # the library leaves a file open; no later test shall be warned of it


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for part in ("coco", "webdataset 'shards/*.tar'", "--annotations", "image_data/<m>/<k>.json"):
        assert part in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required"),
        (["tfrecord", "a", "b"], "invalid choice: 'tfrecord'"),
        (["csv", "a", "b", "c"], "unexpected argument 'c'"),
        (["csv", "a", "b", "--skip"], "unknown option --skip; did you mean '--skip_bad'?"),
        (["csv", "none.csv", "OUT"], "none.csv: cannot read the table"),
        (["coco", "none.json", "OUT"], "coco needs --images"),
        (["coco", "none.json", "OUT", "--images", "none"], "--images none: no such folder"),
        (["csv", "none.csv", "OUT", "--dir_size", "0"], "dir_size 0"),
        (["csv", "none.csv", "OUT", "--log_level", "loud"], "log level is 'loud'"),
    ],
)
def test_wrong_commands_are_one_line(tmp_path: Path, capsys, words, message):
    assert main([str(tmp_path / "out") if word == "OUT" else word for word in words]) == 2
    found = capsys.readouterr().err
    assert message in found
    assert found.startswith("error: ")
    assert found.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named_with_its_command(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert main(["huggingface", str(tmp_path), str(tmp_path / "data")]) == 2
    assert "pip install datasets" in lines(capsys)
