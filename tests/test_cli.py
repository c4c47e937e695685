"""The program's command line: what it prints and writes, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import run_inference
from config.config import MagmaConfig
from config.parsing import load_preset
from execution import sessions
from execution.cached import RunKind
from execution.convert import main as convert
from tests.small_sessions import recorded_kinds
from utils.checkpoint import write_random_checkpoint
from utils.errors import UserError
from utils.tokenizer import SMALL_TOKENIZER, load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--config", "tiny"]


class FakeSession:
    """Favours one id after the other, from "A" on, and then the end of the text."""

    def __init__(self, config: MagmaConfig, tokens: list[int]) -> None:
        self.inputs = SimpleNamespace(words="words", image="image")
        self.outputs = SimpleNamespace(logits="logits")
        self.entered = 0
        self._config = config
        self._tokens = iter(tokens)

    def __enter__(self) -> FakeSession:
        self.entered += 1
        return self

    def __exit__(self, *_error: object) -> None:
        self.entered -= 1

    def run(self, _inputs: object) -> dict[str, np.ndarray]:
        assert self.entered
        config = self._config
        vocabulary = config.transformer.embedding.vocab_size
        logits = np.zeros((config.batch * config.total_tokens, vocabulary), np.float32)
        logits[:, next(self._tokens)] = 50
        return {"logits": np.stack(np.split(logits, config.tensor_parallel, axis=1))}


@pytest.fixture
def picture(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("APP_LOG_LEVEL", raising=False)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, _cache: None) -> list[Any]:
    """The arguments of every session that would be built; it answers with " a b" and ends."""
    calls: list[Any] = []
    tokenizer = load_tokenizer(SMALL_TOKENIZER)
    tokens = [*tokenizer.encode(" a b"), tokenizer.eos_token_id]

    def build_session(config: MagmaConfig, scheme: str, engine: object) -> FakeSession:
        calls.append((config, scheme))
        return FakeSession(config, tokens)

    monkeypatch.setattr(sessions, "build_session", build_session)
    monkeypatch.setattr(sessions, "load_weights", lambda session, weights: None)
    return calls


def _error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that wrong input gives."""
    status = run_inference.main(argv)
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_prints_prompt_text_and_phases(
    picture: Path, opened: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*TINY, "--image", str(picture), "--prompt", "A picture of", "--temperature", "0"]
    assert run_inference.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prompt:    A picture of"
    assert lines[1] == "generated:  a b"
    assert "no trace" in lines[3]
    assert opened == [(load_preset("tiny"), "cached")]


def test_dumps(picture: Path, opened: list[Any], tmp_path: Path) -> None:
    logits_file, tokens_file = tmp_path / "logits.npy", tmp_path / "tokens.json"
    argv = [*TINY, "--image", str(picture), "--prompt", "A", "--top_k", "1"]
    argv += ["--dump_logits", str(logits_file), "--dump_tokens", str(tokens_file)]
    assert run_inference.main(argv) == 0
    tokens = json.loads(tokens_file.read_text())
    tokenizer = load_tokenizer(SMALL_TOKENIZER)
    assert set(tokens) == {"prompt_ids", "generated_ids"}
    assert tokens["prompt_ids"] == tokenizer.encode("A")
    assert tokens["generated_ids"] == [*tokenizer.encode(" a b"), tokenizer.eos_token_id]
    logits = np.load(logits_file)
    assert logits.dtype == np.float32
    assert logits.shape == (len(tokens["generated_ids"]), 512)
    assert logits.argmax(axis=-1).tolist() == tokens["generated_ids"]
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(".*.part"))


def test_empty_prompt_and_batch(
    picture: Path, opened: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    batch = [f"--{part}.execution.micro_batch_size=2" for part in ("visual", "transformer")]
    argv = [*TINY, "--image", str(picture), "--prompt", "", "--temperature", "0", *batch]
    assert run_inference.main(argv) == 0
    assert capsys.readouterr().out.count("generated:  a b") == 2
    assert opened[0][0].batch == 2


@pytest.mark.usefixtures("_cache")
def test_a_checkpoint_says_which_configuration_holds(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_preset("tiny")
    config.visual.width, config.transformer.layers = 8, 1
    write_random_checkpoint(tmp_path / "model.pt", config, dtype="float32")
    sizes = ["--visual.width", "8", "--transformer.layers", "1"]
    ask = ["--image", str(picture), "--temperature", "0"]
    file, folder = str(tmp_path / "model.pt"), str(tmp_path / "folder")
    assert convert([file, folder, "--config", "tiny", *sizes, "--dtype", "float32"]) == 0
    capsys.readouterr()
    expected = _outputs([*ask, *sizes, "--checkpoint", file], capsys)
    for argv in (["--checkpoint", folder], [f"--checkpoint={folder}", "--tensor_parallel", "1"]):
        assert run_inference.main([*ask, *argv, "--log_level", "ERROR"]) == 0
        assert capsys.readouterr().out.split("\n\n")[0].splitlines() == expected
    assert "sequence_length 9" in _error(
        ["--checkpoint", folder, "--sequence_length", "9", "--max_out_tokens", "20"], capsys
    )
    # Anything else is taken for the published model.
    assert "layers = 1 (the configuration says 28)" in _error(["--checkpoint", file], capsys)


_BAD = {
    "unknown preset": (["--config", "tinny"], ["'tinny'", "'tiny'"]),
    "unknown field": (["--transformer.hidden", "3"], ["--transformer.hidden", "hidden_size'"]),
    "wrong type": (["--max_out_tokens", "ten"], ["--max_out_tokens", "'ten'"]),
    "wrong type of a field": (["--width", "x"], ["--width", "'x'"]),
    "tp and heads": (["--tensor_parallel", "16"], ["16", "attention.heads (8)"]),
    "temperature": (["--temperature", "-1"], ["temperature is -1.0"]),
    "top_p above": (["--top_p", "1.5"], ["top_p is 1.5", "0..1"]),
    "top_p below": (["--top_p", "-0.5"], ["top_p is -0.5"]),
    "top_k": (["--top_k", "-2"], ["top_k is -2"]),
    "no token": (["--max_out_tokens", "0"], ["0 new tokens"]),
    "no sample": (["--num_samples", "0"], ["number of samples is 0"]),
    "log-probabilities": (["--logprobs", "-1"], ["-1 most probable tokens"]),
    "stop token": (["--stop_token", "\udcff"], ["not valid text"]),
    "no value": (["--checkpoint"], ["--checkpoint", "expected one argument"]),
    "score and samples": (["--score", " a", "--num_samples", "2"], ["leave out --num_samples"]),
    "no scheme": (["--scheme", "cash"], ["scheme", "'cash'", "cached"]),
    "too many tokens": (["--max_out_tokens", "100"], ["too long", "sequence_length 64"]),
    "long prompt": (["--prompt", "{" * 70], ["6 tokens too long", "has 70", "is 64"]),
    "broken text": (["--prompt", "a\udcff"], ["not valid text"]),
    "log level": (["--log_level", "LOUD"], ["'LOUD'", "DEBUG"]),
    "missing picture": (["--image", "nowhere.png"], ["nowhere.png"]),
    "missing checkpoint": (["--config", "tiny", "--checkpoint", "nowhere.pt"], ["nowhere.pt"]),
    "dump into nowhere": (["--dump_logits", "no/such/logits.npy"], ["no/such"]),
    "dump onto a folder": (["--dump_tokens", "/"], ["folder"]),
    "no such stop token": (["--stop_token", "600"], ["unknown stop token 600", "0..511"]),
    "no such mode": (["--top_p_mode", "big"], ["'big'", "nucleus"]),
    "more to come than may": (["--min_out_tokens", "17"], ["at least 17", "0..16"]),
    "empty stop string": (["--stop", ""], ["stop string is empty"]),
    "picture and none": (["--no_image"], ["--no_image and --image"]),
    "counts": (
        ["--image", "P", "--prompt", "a", "--prompt", "b", "--prompt", "c"],
        ["2 --image", "3 --prompt"],
    ),
    "placeholders": (["--prompt", "{image} and {image}"], ["{image} 2 times", "1 --image"]),
    "second picture": (["--image", "P", "--image", "nowhere.png"], ["--image 2", "nowhere.png"]),
    "score and dump": (["--score", "a", "--dump_tokens", "x.json"], ["--score", "--dump_"]),
    "stray word": (["picture.png"], ["'picture.png'"]),
    "other sizes than the published": (
        ["--config", "magma_v1_500", "--transformer.layers", "2"],
        ["published checkpoint", "--checkpoint"],
    ),
}


@pytest.mark.parametrize("case", _BAD)
def test_bad_input_is_one_line(
    case: str, picture: Path, opened: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    argv, facts = _BAD[case]
    image = [] if argv[:1] == ["--image"] and argv[1] != "P" else ["--image", str(picture)]
    line = _error(
        [*TINY, *image, *(str(picture) if word == "P" else word for word in argv)], capsys
    )
    for fact in facts:
        assert fact in line
    assert not opened, "wrong input must be found before a session is built"


def test_checkpoint_of_other_sizes_is_one_line(
    picture: Path, tmp_path: Path, opened: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_preset("tiny")
    config.transformer.layers = 1
    path = tmp_path / "model.pt"
    write_random_checkpoint(path, config)
    argv = ["--config", "tiny", "--checkpoint", str(path), "--image", str(picture)]
    assert "transformer.layers = 1" in _error(argv, capsys)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_left_is_one_line_and_leaves_nothing(
    picture: Path,
    tmp_path: Path,
    opened: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(file: object, _array: object) -> None:
        with open("/dev/full", "wb") as device:  # noqa: PTH123 - a device, not a path of ours
            device.write(b"x" * 10_000_000)

    monkeypatch.setattr(np, "save", full)
    target = tmp_path / "logits.npy"
    argv = [*TINY, "--image", str(picture), "--dump_logits", str(target), "--log_level", "ERROR"]
    assert run_inference.main([*argv, "--temperature", "0"]) == 2
    captured = capsys.readouterr()
    assert "generated:  a b" in captured.out
    assert captured.err.startswith(f"error: {target}: ")
    assert "no space left" in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "picture.png"]


def test_interruption_ends_quietly(
    picture: Path,
    opened: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_inference, "asked_prompts", interrupt)
    argv = [*TINY, "--image", str(picture), "--log_level", "WARNING"]
    assert run_inference.main(argv) == 130
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_notebook_functions(picture: Path, opened: list[Any]) -> None:
    session, config, tokenizer = run_inference.init_inference_session("tiny", None)
    assert config == load_preset("tiny")
    assert len(tokenizer) == 512
    session.entered = 1
    text = run_inference.run_inference(
        session, config, tokenizer, str(picture), "A picture of ", 0,
        top_p=0.9, top_k=0.0, temperature=0.0, max_out_tokens=6,
    )  # fmt: skip
    assert text == " a b"
    assert session.entered == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"temperature": -1}, "temperature"), ({"max_out_tokens": 99}, "too long")],
)
def test_notebook_functions_refuse_too(
    changes: dict[str, float], message: str, picture: Path, opened: list[Any]
) -> None:
    session, config, tokenizer = run_inference.init_inference_session("tiny")
    with pytest.raises(UserError, match=message):
        run_inference.run_inference(session, config, tokenizer, picture, "A", 0, **changes)


def _program(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run_inference.py", *argv],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_teaches() -> None:
    result = _program("--help", COLUMNS="100")
    assert result.returncode == 0
    assert result.stderr == ""
    options = ["config", "checkpoint", "image", "prompt", "seed", "top_p", "top_k", "temperature"]
    options += [
        "max_out_tokens",
        "num_samples",
        "scheme",
        "log_level",
        *("no_image", "skip_bad", "score", "top_p_mode", "repetition_penalty", "min_out_tokens"),
        *("stop", "stop_token", "logprobs"),
        "dump_logits",
        "dump_tokens",
        "heads",
    ]
    options += [
        "transformer.attention.heads",
        "visual.layers",
        "ff_adapter.mode",
        "tensor_parallel",
    ]
    for option in options:
        assert f"--{option}" in result.stdout
    for fact in ("magma_v1_1024", "(default: 0.9)", "examples:", "text to continue"):
        assert fact in result.stdout
    assert "(default: None)" not in result.stdout


def test_program_ends_with_status_two() -> None:
    result = _program("--config", "tinny")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: unknown config 'tinny'")
    assert result.stderr.count("\n") == 1


PHASES_OF_FIVE_TOKENS = {
    "recompute": {"image_prefix": 5, "embedding": 5, "decoder": 10, "lm_head": 5},
    "cached": {"image_prefix": 1, "prefill/decoder": 2, "decode/decoder": 8, "decode/lm_head": 4},
}


@pytest.mark.parametrize("scheme", PHASES_OF_FIVE_TOKENS)
def test_the_whole_program(picture: Path, tmp_path: Path, scheme: str) -> None:
    files = {name: tmp_path / name for name in ("logits.npy", "tokens.json")}
    argv = [*TINY, "--image", str(picture), "--prompt", "A picture of", "--max_out_tokens", "5"]
    argv += [
        "--scheme",
        scheme,
        "--dump_logits",
        str(files["logits.npy"]),
        "--dump_tokens",
        str(files["tokens.json"]),
    ]
    result = _program(*argv, DATASETS_DIR=str(tmp_path), APP_LOG_LEVEL="WARNING")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "prompt:    A picture of"
    assert lines[1].startswith("generated: ")
    phases = [line.split()[:2] for line in lines if line]
    for phase, runs in PHASES_OF_FIVE_TOKENS[scheme].items():
        assert [phase, str(runs)] in phases
    tokens = json.loads(files["tokens.json"].read_text())
    assert np.load(files["logits.npy"]).shape == (len(tokens["generated_ids"]), 512)


def _outputs(argv: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines before the table of a run with the tiny model."""
    assert run_inference.main([*TINY, *argv, "--log_level", "ERROR"]) == 0
    return capsys.readouterr().out.split("\n\n")[0].splitlines()


@pytest.mark.usefixtures("_cache")
@pytest.mark.parametrize(
    ("argv", "prompts"),
    [
        (["--image", "P", "--prompt", "a", "--prompt", "b"], ["a", "b"]),
        (["--image", "P", "--image", "P", "--prompt", "a"], ["a", "a"]),
        (["--image", "P", "--image", "P", "--prompt", "a", "--prompt", "b"], ["a", "b"]),
        (["--no_image", "--prompt", "a", "--prompt", "b"], ["a", "b"]),
        (
            ["--image", "P", "--image", "P", "--prompt", "x {image} y {image}", "--prompt", "b"],
            ["x {image} y {image}", "b"],
        ),
    ],
)
def test_pictures_and_prompts(
    argv: list[str], prompts: list[str], picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(picture) if word == "P" else word for word in argv]
    lines = _outputs([*argv, "--temperature", "0"], capsys)
    assert lines[::2] == [f"prompt:    {prompt}" for prompt in prompts]
    assert all(line.startswith("generated: ") for line in lines[1::2])


@pytest.mark.usefixtures("_cache")
def test_pictures_stand_where_the_prompt_says(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (50, 50), (200, 30, 30)).save(other)
    texts = []
    for first, second in ((picture, other), (other, picture)):
        images = ["--image", str(first), "--image", str(second), "--temperature", "0"]
        texts.append(_outputs([*images, "--prompt", "a {image} b {image} c"], capsys)[1])
    assert texts[0] != texts[1]


@pytest.mark.usefixtures("_cache")
def test_bad_pictures_can_be_skipped(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = ["--image", str(picture), "--image", "nowhere.png", "--image", str(picture)]
    lines = _outputs([*images, "--skip_bad", "--temperature", "0"], capsys)
    assert lines[3].startswith("skipped:   picture of prompt 1: nowhere.png")
    assert lines[1] == lines[5]
    assert lines[1].startswith("generated: ")


@pytest.mark.usefixtures("_cache")
def test_skipping_every_picture_answers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*TINY, "--skip_bad", "--image", "nowhere.png", "--image", "neither.png"]
    assert run_inference.main([*argv, "--log_level", "WARNING"]) == 2
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["prompt:", "skipped:"] * 2
    assert captured.err == ("error: nothing was answered: no picture of any prompt can be used\n")


@pytest.mark.usefixtures("_cache")
def test_a_budget_that_is_no_size_is_one_line(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size, fact in (
        ("tiny", "device_memory is 'tiny'"),
        ("1KiB", "device_memory is 1,024 bytes"),
    ):
        argv = [*TINY, "--image", str(picture), "--device_memory", size, "--log_level", "WARNING"]
        assert fact in _error(argv, capsys)


@pytest.mark.usefixtures("_cache")
def test_stop_strings_and_log_probabilities(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--image", str(picture), "--temperature", "0", "--max_out_tokens", "12"]
    whole = _outputs(argv, capsys)[1]
    stop = whole[-4:-2]
    lines = _outputs([*argv, "--stop", stop, "--logprobs", "3"], capsys)
    assert lines[1] == whole[: whole.index(stop)]
    assert 1 <= len(lines) - 2 < 12
    for line in lines[2:]:
        # The most probable token is the one chosen, so its logarithm stands twice.
        assert line.count(line.split()[0]) == 2


@pytest.mark.usefixtures("_cache")
def test_scores_are_ranked(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--image", str(picture), "--prompt", "A", "--prompt", "B"]
    lines = _outputs([*argv, "--score", " red", "--score", " a", "--score", "x y z"], capsys)
    assert [lines[0], lines[4]] == ["prompt:    A", "prompt:    B"]
    for ranked in (lines[1:4], lines[5:8]):
        log_probs = [float(line.split()[0]) for line in ranked]
        assert log_probs == sorted(log_probs, reverse=True)
        assert sum(float(line.split()[1].rstrip("%")) for line in ranked) == pytest.approx(
            100, abs=0.2
        )
        assert {line.split(None, 2)[2] for line in ranked} == {"' red'", "' a'", "'x y z'"}


def test_answers_are_printed_in_order_as_they_come(
    picture: Path, opened: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--image", str(picture), "--prompt", "a", "--prompt", "b", "--num_samples", "2"]
    lines = _outputs([*argv, "--temperature", "0"], capsys)
    answers = ["generated:  a b"] * 2
    assert lines == ["prompt:    a", *answers, "prompt:    b", *answers]


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, though a test run in the background may have been told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_cache", "_interruptible")
def test_an_interrupted_run_keeps_its_text(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Ctrl-C comes when some of the text has been written."""
    write, written = sys.stdout.write, []

    def interrupted_write(text: str) -> int:
        count = write(text)
        written.append(text)
        if len("".join(written)) >= len("prompt:    A\ngenerated: ") + 10:
            monkeypatch.setattr(sys.stdout, "write", write)
            signal.raise_signal(signal.SIGINT)
        return count

    monkeypatch.setattr(sys.stdout, "write", interrupted_write)
    files = {name: tmp_path / name for name in ("logits.npy", "tokens.json")}
    argv = [*TINY, "--image", str(picture), "--prompt", "A", "--log_level", "WARNING"]
    argv += ["--max_out_tokens", "40", "--min_out_tokens", "40"]
    argv += ["--dump_logits", str(files["logits.npy"]), "--dump_tokens", str(files["tokens.json"])]
    assert run_inference.main(argv) == 130
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "decode/decoder" in output
    tokens = json.loads(files["tokens.json"].read_text())
    assert 0 < len(tokens["generated_ids"]) < 40
    assert np.load(files["logits.npy"]).shape == (len(tokens["generated_ids"]), 512)
    text = load_tokenizer(SMALL_TOKENIZER).decode(tokens["generated_ids"])
    printed = output.split("generated: ")[1].split("\n\nphase")[0]
    # What was chosen last may be half a character, which is not shown yet.
    assert text.startswith(printed)
    assert len(text) - len(printed) <= 1


@pytest.mark.usefixtures("_cache")
def test_samples_share_the_picture(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        *TINY,
        "--image",
        str(picture),
        "--num_samples",
        "3",
        "--temperature",
        "1",
        "--seed",
        "5",
    ]
    assert run_inference.main([*argv, "--max_out_tokens", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    answers = [line for line in lines if line.startswith("generated: ")]
    assert len(set(answers)) == 3
    assert "image_prefix 1 " in " ".join(" ".join(line.split()) for line in lines)


def test_a_session_answers_again_and_the_same(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path))
    opened = run_inference.init_inference_session("tiny")

    def answer(seed: int, **options: float) -> str:
        return run_inference.run_inference(*opened, str(picture), "A", seed, **options)

    first = answer(3, max_out_tokens=12, temperature=1.0)
    assert answer(3, max_out_tokens=12, temperature=1.0) == first
    assert answer(4, max_out_tokens=12, temperature=1.0) != first
    assert answer(3, temperature=0.0) == answer(4, temperature=0.0)


def test_a_picture_is_encoded_once_for_all_calls(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path))
    opened = run_inference.init_inference_session("tiny")
    kinds = recorded_kinds(monkeypatch, opened[0])
    for prompt in ("A", "B"):
        run_inference.run_inference(*opened, picture, prompt, 0, max_out_tokens=1)
    assert kinds == [RunKind.ENCODE, RunKind.PREFILL, RunKind.PREFILL]
