"""The command line of `run_inference.py`: its options, and what it prints and writes."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config.config import MagmaConfig
from execution.answers import Answer, Piece, Stream
from execution.engine import WEIGHTS
from execution.magma import Score
from execution.options import Options
from execution.sessions import SCHEMES
from modelling.mapping import model_weights
from utils.checkpoint import open_checkpoint
from utils.errors import UserError
from utils.files import atomic_file
from utils.images import ImageInput, load_image
from utils.log import default_level
from utils.model_folder import is_model_folder
from utils.model_folder_rows import Storage, planned_tensors
from utils.quantise import FORMATS
from utils.sampling import TOP_P_FILTERS, softmax

if TYPE_CHECKING:
    from simple_parsing import ArgumentParser

DEMO_IMAGE = Path(__file__).resolve().parents[1] / "examples" / "world" / "01.jpg"
DEFAULT_PROMPT = "A picture of"
PLACEHOLDER = "{image}"


def add_options(parser: ArgumentParser) -> None:
    """Adds the program's own options to a parser."""
    _add_model_options(parser)
    _add_question_options(parser)
    _add_sampling_options(parser)
    _add_stopping_options(parser)
    _add_output_options(parser)


def _add_model_options(parser: ArgumentParser) -> None:
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="weights: model folder, .pt or .safetensors file, index or folder (default: the "
        "shipped model for config world, random weights for tiny, else the published file, "
        "downloaded)",
    )
    model.add_argument(
        "--scheme",
        choices=sorted(SCHEMES),
        default="cached",
        help="cached keeps keys and values, recompute runs everything again for every token",
    )
    model.add_argument(
        "--device_memory",
        metavar="SIZE",
        help="memory that may be taken, such as 2GiB, or auto for what is free: anonymous memory "
        "on a CPU, its own on a GPU (default: no limit on a CPU, what is free on a GPU)",
    )
    model.add_argument(
        "--weights",
        choices=WEIGHTS,
        help="mapped: used where their files are mapped (default on a CPU); read: kept in memory "
        "as far as --device_memory allows, the rest read from the files for each use; pinned: the "
        "rest kept in pinned memory of the host, for a GPU",
    )
    model.add_argument(
        "--plan_only",
        nargs="?",
        const="",
        choices=("", *FORMATS),
        metavar="FORMAT",
        help="print what would be kept where, and end; no weights are needed, those of a model "
        "folder count as they are stored, and int8 and int4 stand for a folder of such weights",
    )


def _add_question_options(parser: ArgumentParser) -> None:
    question = parser.add_argument_group("what to answer")
    question.add_argument(
        "--image",
        metavar="PATH_OR_URL",
        action="append",
        help=f"picture, local or http(s); may be repeated (default: {DEMO_IMAGE.name})",
    )
    question.add_argument("--no_image", action="store_true", help="continue text without a picture")
    question.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="text to continue; may be repeated. Pictures come before it, or where it says "
        f"{PLACEHOLDER} (default: {DEFAULT_PROMPT})",
    )
    question.add_argument(
        "--score",
        metavar="TEXT",
        action="append",
        help="instead of generating, rank continuations by probability: their logarithms and their "
        "shares among each other; repeat for each (behind a word they begin with a space)",
    )
    question.add_argument(
        "--num_samples",
        type=int,
        metavar="N",
        help="answers to draw for each prompt (default: micro_batch_size)",
    )
    question.add_argument(
        "--skip_bad", action="store_true", help="go on without prompts whose picture is unreadable"
    )


def _add_sampling_options(parser: ArgumentParser) -> None:
    choice = parser.add_argument_group("how tokens are chosen (with --seed below)")
    choice.add_argument(
        "--temperature", type=float, default=0.7, help="0: most probable token; larger: more random"
    )
    choice.add_argument(
        "--top_k", type=int, default=0, help="draw among the k most probable tokens; 0: all"
    )
    choice.add_argument(
        "--top_p",
        type=float,
        default=0.9,
        help="draw among the most probable tokens that reach this probability together",
    )
    choice.add_argument(
        "--top_p_mode",
        choices=list(TOP_P_FILTERS),
        default="nucleus",
        help="nucleus: as --top_p says; magma: the original's filter, which hardly filters",
    )
    choice.add_argument(
        "--repetition_penalty",
        type=float,
        default=1.0,
        help="above 1: tokens that the text has become less probable",
    )


def _add_stopping_options(parser: ArgumentParser) -> None:
    choice = parser.add_argument_group("when an answer ends")
    choice.add_argument("--max_out_tokens", type=int, default=16, help="new tokens at most")
    choice.add_argument("--min_out_tokens", type=int, default=0, help="no end before so many")
    choice.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        help="an answer ends before this text; may be repeated",
    )
    choice.add_argument(
        "--stop_token",
        metavar="ID_OR_TEXT",
        action="append",
        help="token that ends an answer like the end-of-text token; may be repeated",
    )


def _add_output_options(parser: ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help="print each token's log-probability and those of the N most probable ones",
    )
    output.add_argument(
        "--dump_logits",
        metavar="FILE.npy",
        help="write the next-token logits of every step, float32 [new tokens, vocab_size], one "
        "answer after the other",
    )
    output.add_argument(
        "--dump_tokens",
        metavar="FILE.json",
        help="write prompt_ids and generated_ids; a list of such for several answers",
    )
    output.add_argument(
        "--log_level",
        metavar="LEVEL",
        default=default_level(),
        help="DEBUG, INFO, WARNING, ERROR or CRITICAL",
    )


def generation_options(options: Namespace, samples: int, seed: int) -> Options:
    """What the options say about choosing tokens; ``samples`` where they don't."""
    return Options(
        max_new_tokens=options.max_out_tokens,
        min_new_tokens=options.min_out_tokens,
        num_return_sequences=samples if options.num_samples is None else options.num_samples,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        top_p_mode=options.top_p_mode,
        repetition_penalty=options.repetition_penalty,
        seed=seed,
        stop_strings=options.stop or [],
        stop_tokens=[
            int(t) if t.isascii() and t.isdigit() else t for t in options.stop_token or []
        ],
        top_log_probs=options.logprobs or 0,
        output_logits=options.dump_logits is not None,
    )


def planned_weights(config: MagmaConfig, options: Namespace) -> dict[str, np.ndarray] | None:
    """The weights whose storage a plan counts: of a model folder, or stand-ins for those of one
    that is to be made. None for weights in the configuration's precision."""
    if options.plan_only:
        return model_weights(config, planned_tensors(config, Storage(options.plan_only)))
    path = Path(options.checkpoint or "")
    if not is_model_folder(path):
        return None
    return model_weights(config, open_checkpoint(path, config))


def asked_prompts(options: Namespace) -> list[tuple[str, list[Any]]]:
    """The prompts of the command line: for each how it was written and its pieces.

    Pictures and prompts are paired in order; one picture goes with every prompt, and one prompt
    with every picture. If any prompt has a placeholder, the pictures go to the placeholders in
    order, and a prompt without one is text alone.

    Raises:
        UserError: numbers that do not fit together, or a picture that cannot be read.
    """
    texts = options.prompt or [DEFAULT_PROMPT]
    if options.no_image and options.image:
        raise UserError("--no_image and --image exclude each other; leave one of them out")
    sources = [] if options.no_image else options.image or [str(DEMO_IMAGE)]
    pictures = [_picture(source, number, options.skip_bad) for number, source in enumerate(sources)]
    places = sum(text.count(PLACEHOLDER) for text in texts)
    if places:
        return _filled(texts, places, pictures)
    if options.no_image:
        return [(text, [text]) for text in texts]
    if 1 not in (len(texts), len(pictures)) and len(texts) != len(pictures):
        raise UserError(
            f"{len(pictures)} --image and {len(texts)} --prompt: give as many of both, one of "
            f"either, or prompts that say where pictures stand with {PLACEHOLDER}"
        )
    count = max(len(texts), len(pictures))
    texts, pictures = (x * count if len(x) == 1 else x for x in (texts, pictures))
    return [(text, [picture, text]) for text, picture in zip(texts, pictures, strict=True)]


def _filled(texts: Sequence[str], places: int, pictures: Sequence[Any]) -> list[tuple[str, Any]]:
    if places != len(pictures):
        raise UserError(
            f"the prompts have {PLACEHOLDER} {places} times, but there are {len(pictures)} "
            "--image; give one for each"
        )
    left = iter(pictures)
    prompts = []
    for text in texts:
        first, *others = text.split(PLACEHOLDER)
        pieces = [first]
        for other in others:
            pieces += [next(left), other]
        prompts.append((text, [piece for piece in pieces if piece != ""]))
    return prompts


def _picture(source: str, number: int, skip_bad: bool) -> Any:
    """A picture, read now: before a checkpoint is looked for."""
    try:
        return load_image(source)
    except UserError as error:
        if skip_bad:
            return ImageInput(source)  # reported when it is used
        raise UserError(f"--image {number}: {error}") from error


class Printer:
    """Prints answers in their order, each as it comes; later ones wait for their turn."""

    def __init__(self, labels: Sequence[str], stream: Stream, log_probs: bool) -> None:
        """Prints nothing yet.

        Args:
            labels: how each prompt was written.
            stream: the answers.
            log_probs: whether each answer is followed by its log-probabilities.
        """
        self._labels, self._stream, self._log_probs = labels, stream, log_probs
        self._current = -1

    def run(self) -> None:
        """Makes and prints all answers; when interrupted, prints what there is first."""
        try:
            # What is logged while the program is made comes before the first line, not into it.
            next(self._stream, None)
            self._begin()
            self._end_finished()
            for piece in self._stream:
                self._show(piece)
            self._end_finished()
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):
                if self._current < 0:
                    self._begin()
                self._print_rest()
            raise

    def _answer(self) -> Answer:
        return self._stream.answers[self._current]

    def _begin(self) -> None:
        """Begins the line of the next answer."""
        self._current += 1
        answer = self._answer()
        if answer.sample == 0:
            print(f"prompt:    {self._labels[answer.prompt]}")
        if answer.error is not None:
            print(f"skipped:   {answer.error}", end="", flush=True)
        else:
            print(f"generated: {answer.text}", end="", flush=True)

    def _show(self, piece: Piece) -> None:
        if piece.answer == self._current:
            print(piece, end="", flush=True)
        self._end_finished()

    def _end_finished(self) -> None:
        """Ends lines of answers that are complete, and begins those after them."""
        answers = self._stream.answers
        while self._current < len(answers) and _is_complete(self._answer()):
            self._end()
            if self._current + 1 == len(answers):
                self._current += 1
                return
            self._begin()

    def _end(self) -> None:
        print()
        if self._log_probs and self._answer().error is None:
            for line in log_prob_lines(self._answer(), self._stream.token_text):
                print(line)

    def _print_rest(self) -> None:
        while self._current < len(self._stream.answers):
            self._end()
            if self._current + 1 == len(self._stream.answers):
                return
            self._begin()


def _is_complete(answer: Answer) -> bool:
    return answer.error is not None or answer.finish_reason is not None


def score_lines(scores: Sequence[Score]) -> list[str]:
    """A line for each continuation, the most probable first: logarithm, share, text."""
    shares = softmax(np.array([score.log_prob for score in scores]))
    ranked = sorted(zip(scores, shares, strict=True), key=lambda pair: -pair[0].log_prob)
    return [f"  {score.log_prob:9.3f}  {share:6.1%}  {score.text!r}" for score, share in ranked]


def log_prob_lines(answer: Answer, token_text: Any) -> list[str]:
    """A line for each token: its log-probability, its text and its alternatives."""
    return [
        f"  {log_prob:8.3f}  {token_text(token)!r:<14}"
        + "  ".join(f"{other.text!r} {other.log_prob:.3f}" for other in alternatives)
        # Where the answer was interrupted, its last token may lack the others.
        for token, log_prob, alternatives in zip(
            answer.ids, answer.log_probs, answer.alternatives, strict=False
        )
    ]


def dump(options: Namespace, answers: Sequence[Answer], vocabulary: int) -> None:
    """Writes the files that the options ask for."""
    if options.dump_logits is not None:
        rows = [row for answer in answers for row in answer.kept_logits]
        logits = np.stack(rows) if rows else np.zeros((0, vocabulary), np.float32)
        with atomic_file(options.dump_logits, logits.nbytes) as file:
            np.save(file, logits)
    if options.dump_tokens is not None:
        ids = [{"prompt_ids": a.prompt_ids, "generated_ids": a.ids} for a in answers]
        with atomic_file(options.dump_tokens) as file:
            file.write((json.dumps(ids[0] if len(ids) == 1 else ids) + "\n").encode())
