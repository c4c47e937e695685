"""Evaluation on a dataset: prompts of its samples, answers in batches, a file that keeps them.

A prompt is, for each of some examples, its picture and its text with the answer; then the sample's
own picture and the text that asks.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from execution.prompts import Picture, check_length
from utils.dataset_files import BadSamples, picture_path, read_record, sample_files
from utils.errors import UserError
from utils.images import load_image
from utils.metrics import words
from utils.tokenizer import encode

if TYPE_CHECKING:
    from execution.magma import Magma


@dataclass(frozen=True)
class Sample:
    """A sample of a dataset, as one task sees it.

    Attributes:
        name: its file, within the dataset.
        picture: its picture's file.
        prompt: the text behind the picture that asks for an answer.
        answer: what stands behind the prompt where the sample is an example.
        references: what an answer is compared with.
    """

    name: str
    picture: Path
    prompt: str
    answer: str
    references: list[str]


@dataclass(frozen=True)
class Task:
    """What is asked of every sample.

    Attributes:
        read: makes prompt, answer and references of a record and the prompt's template.
        prompt: the default template.
        metrics: names of its metrics, in `utils.metrics`.
        stop_strings: an answer ends before any of them.
        max_new_tokens: the default length of an answer.
    """

    read: Callable[[dict[str, Any], str], tuple[str, str, list[str]]]
    prompt: str
    metrics: tuple[str, ...]
    stop_strings: tuple[str, ...]
    max_new_tokens: int


def _caption(record: dict[str, Any], template: str) -> tuple[str, str, list[str]]:
    """References that begin with the prompt are compared without it: it is given."""
    found = [text.strip().removeprefix(template).strip() for text in record["captions"]]
    references = [text for text in found if words(text)]
    if not references:
        raise UserError('no text in "captions" has a word')
    return template, references[0], references


def _question(record: dict[str, Any], template: str) -> tuple[str, str, list[str]]:
    """The answer of an example is the most frequent one."""
    metadata = record.get("metadata")
    found = metadata if isinstance(metadata, dict) else {}
    question, answers = found.get("question"), found.get("answers")
    if not isinstance(question, str) or not question.strip():
        raise UserError('"metadata" has no "question"; expected a text')
    if not isinstance(answers, list) or not answers:
        raise UserError('"metadata" has no "answers"; expected a list of texts')
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise UserError('"answers" holds something that is no text')
    most_frequent = Counter(answers).most_common(1)[0][0]
    return template.replace(QUESTION, question.strip()), most_frequent.strip(), answers


QUESTION = "{question}"
"""Where a template has the question."""

TASKS = {
    "captions": Task(_caption, "A picture of", ("bleu", "cider", "rouge"), ("\n",), 30),
    "vqa": Task(_question, f"Q: {QUESTION} A:", ("vqa",), ("\n", "Q:"), 10),
}


def read_samples(
    root: Path, task: Task, template: str, bad: BadSamples, limit: int | None = None
) -> list[Sample]:
    """The samples of a dataset.

    Args:
        root: the dataset, as ``python -m training.convert_dataset`` writes it.
        task: what to read of them.
        template: of the prompts.
        bad: notes those that cannot be used.
        limit: how many files are looked at.

    Raises:
        UserError: no dataset, no sample that can be used, or what ``bad`` does not skip.
    """
    samples = []
    files = sample_files(root)[:limit]
    for path in tqdm(files, desc=f"checking {root}", unit="sample", disable=None):
        try:
            samples.append(_sample(root, path, task, template))
        except UserError as error:
            bad.add(str(error))
    if not samples:
        raise UserError(f"{root}: all {len(files)} samples are bad; nothing is left")
    return samples


def _sample(root: Path, path: Path, task: Task, template: str) -> Sample:
    record = read_record(path)
    picture = picture_path(root, path, record)
    try:
        prompt, answer, references = task.read(record, template)
        "".join([prompt, *references]).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: holds text that is not valid: {error.reason}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Sample(path.relative_to(root).as_posix(), picture, prompt, answer, references)


class Examples:
    """Draws the examples of every prompt: the same ones for the same seed and sample."""

    def __init__(self, samples: Sequence[Sample], shots: int, seed: int, bad: BadSamples) -> None:
        """Draws nothing yet.

        Args:
            samples: the train split.
            shots: examples of a prompt.
            seed: another seed draws others.
            bad: notes samples whose picture cannot be read; others are drawn for them.
        """
        self._samples, self._shots, self._seed, self._bad = samples, shots, seed, bad
        self._unreadable: set[int] = set()

    def of(self, sample: Sample, image: Image.Image) -> list[tuple[Sample, Image.Image]]:
        """Different examples for a sample, none of which shows its picture.

        Args:
            sample: the sample.
            image: its picture.

        Raises:
            UserError: there are too few, or one cannot be read and ``bad`` does not skip it.
        """
        rng = random.Random(f"{self._seed} {sample.name}")
        drawn: set[int] = set()
        found: list[tuple[Sample, Image.Image]] = []
        while len(found) < self._shots:
            if len(drawn) == len(self._samples):
                raise UserError(
                    f"{sample.name} has {len(found)} possible examples in the train split of "
                    f"{len(drawn)}, but {self._shots} are asked for"
                )
            index = rng.randrange(len(self._samples))
            if index not in drawn:
                drawn.add(index)
                example = self._read(index)
                if example is not None and not _equal(example, image):
                    found.append((self._samples[index], example))
        return found

    def _read(self, index: int) -> Image.Image | None:
        if index in self._unreadable:
            return None
        try:
            return load_image(self._samples[index].picture)
        except UserError as error:
            line = f"example {self._samples[index].name}: {error}"
            if not self._bad.skip:
                raise UserError(line) from error
            self._bad.add(line)
            self._unreadable.add(index)
            return None


def _equal(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.mode == other.mode and one.tobytes() == other.tobytes()


@dataclass(frozen=True)
class Asked:
    """A prompt and what it was made of."""

    sample: Sample
    examples: list[Sample]
    pieces: list[Any]


def ask(sample: Sample, examples: Examples) -> Asked:
    """The prompt of a sample: pictures and texts by turns.

    Raises:
        UserError: its picture cannot be read, or there are too few examples.
    """
    image = load_image(sample.picture)
    drawn = examples.of(sample, image)
    pieces: list[Any] = []
    for example, its_image in drawn:
        pieces += [its_image, f"{example.prompt} {example.answer}"]
    return Asked(sample, [example for example, _ in drawn], [*pieces, image, sample.prompt])


@dataclass(frozen=True)
class Result:
    """A sample's answer.

    Attributes:
        name: the sample's.
        prompt: the text that asked.
        examples: the names of the examples before it.
        prediction: the model's answer.
        references: what people wrote.
    """

    name: str
    prompt: str
    examples: list[str]
    prediction: str
    references: list[str]


def answer_all(
    magma: Magma,
    task: Task,
    samples: Sequence[Sample],
    examples: Examples,
    bad: BadSamples,
    batch: int,
    max_new_tokens: int,
) -> Iterator[list[Result]]:
    """The most probable answers, batch by batch; each batch as soon as it is made.

    Args:
        magma: the model.
        task: what the samples were read for.
        samples: the samples.
        examples: draws the examples of each.
        bad: notes samples whose picture or prompt cannot be used.
        batch: samples that run together.
        max_new_tokens: of an answer at most.

    Raises:
        UserError: too few examples, or what ``bad`` does not skip.
    """
    for first in range(0, len(samples), batch):
        asked = []
        for sample in samples[first : first + batch]:
            try:
                prompt = ask(sample, examples)
                _check_fits(magma, prompt, max_new_tokens)
            except UserError as error:
                bad.add(f"{sample.name}: {error}")
            else:
                asked.append(prompt)
        yield _answers(magma, task, asked, bad, max_new_tokens) if asked else []


def _check_fits(magma: Magma, asked: Asked, max_new_tokens: int) -> None:
    """Raises UserError where a prompt is too long for the model, with the sample's name."""
    prompt: list[Any] = []
    for piece in asked.pieces:
        prompt += encode(magma.tokenizer, piece) if isinstance(piece, str) else [Picture(0)]
    check_length(magma.config, prompt, max_new_tokens, f"{max_new_tokens} new ones")


def _answers(
    magma: Magma, task: Task, asked: Sequence[Asked], bad: BadSamples, max_new_tokens: int
) -> list[Result]:
    answers = magma.generate(
        prompts=[prompt.pieces for prompt in asked],
        skip_bad=True,
        temperature=0,
        max_new_tokens=max_new_tokens,
        stop_strings=task.stop_strings,
    )
    results = []
    for prompt, answer in zip(asked, answers, strict=True):
        sample = prompt.sample
        if answer.error is not None:
            bad.add(f"{sample.name}: {answer.error}")
            continue
        names = [example.name for example in prompt.examples]
        text = answer.text.strip()
        results.append(Result(sample.name, sample.prompt, names, text, sample.references))
    return results


class ResultsFile:
    """Answers on disk, a line of JSON each behind a line of settings; it survives a kill.

    The settings are written with the first answers, so that a run that failed before them binds
    no later one.

    Attributes:
        results: by the sample's name.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Makes the file, or goes on with one of the same settings.

        Args:
            path: the file.
            settings: what the answers depend on.

        Raises:
            UserError: it cannot be read or written, is something else, or has other settings.
        """
        self._path, self._settings = path, settings
        self.results: dict[str, Result] = {}
        try:
            path.touch()
            content = path.read_bytes()
            # A kill may leave half a line at the end.
            whole = content[: content.rfind(b"\n") + 1]
            lines = whole.splitlines()
            if lines:
                self._check_settings(lines[0], binding=len(lines) > 1)
            if len(lines) == 1:
                whole = b""  # stopped within its first answers
            for number, line in enumerate(lines[1:], start=2):
                result = self._result(line, number)
                self.results[result.name] = result
            if whole != content:
                os.truncate(path, len(whole))
        except OSError as error:
            raise UserError(f"{path}: cannot read or write it: {error.strerror}") from error

    def add(self, results: Sequence[Result]) -> None:
        """Keeps answers.

        Raises:
            UserError: they cannot be written.
        """
        if not results:
            return
        settings = [] if self.results else [{"settings": self._settings}]
        try:
            self._append([*settings, *(vars(result) for result in results)])
        except OSError as error:
            raise UserError(f"{self._path}: cannot write: {error.strerror}") from error
        self.results |= {result.name: result for result in results}

    def _append(self, lines: Sequence[dict[str, Any]]) -> None:
        with self._path.open("ab") as file:
            file.write("".join(f"{json.dumps(line)}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def _check_settings(self, line: bytes, binding: bool) -> None:
        """Raises UserError if a first line has no settings, or, where they bind, has others."""
        now = self._settings
        try:
            found = json.loads(line)["settings"]
            different = [key for key, value in now.items() if binding and found[key] != value]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self._path}: is no file of results; name another folder with --out"
            ) from error
        if different:
            key = different[0]
            raise UserError(
                f"{self._path}: was made with {key} {found[key]!r}, now it is {now[key]!r}; "
                "name another folder with --out, or remove the file"
            )

    def _result(self, line: bytes, number: int) -> Result:
        try:
            result = Result(**json.loads(line))
            texts = [result.name, result.prompt, result.prediction]
            texts += [*result.examples, *result.references]
            if not result.references or not all(isinstance(text, str) for text in texts):
                raise ValueError("a field has another type")
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self._path}: line {number} is no result; remove that line, or the file"
            ) from error
        return result
