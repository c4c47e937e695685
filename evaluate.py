"""Evaluate MAGMA on a dataset: captions or questions, answers kept as they come, scores, a page.

python evaluate.py captions data/coco_val --model magma_v1_500 --out results/coco
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_quietly

    end_quietly()  # if Ctrl-C comes during the imports below

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config.parsing import nearest
from execution.evaluation import (
    QUESTION,
    TASKS,
    Examples,
    Result,
    ResultsFile,
    Sample,
    answer_all,
    read_samples,
)
from execution.evaluation_report import Shown, report_page
from execution.magma import Magma
from utils.checkpoint_sources import SHIPPED_PRESET
from utils.dataset_files import BadSamples
from utils.errors import UserError
from utils.files import atomic_file
from utils.log import check_level, default_level, setup_logging
from utils.metrics import METRICS, Scored, check_metrics
from utils.program import ProgramParser, run_program

_log = logging.getLogger("evaluate")

_DESCRIPTION = """\
Evaluate MAGMA on a dataset: it describes pictures (captions) or answers questions about them (vqa).

Answers are the most probable ones (greedy). DATA is a dataset in MAGMA's format; python -m
training.convert_dataset makes one of COCO captions, VQAv2 and other layouts.
"""

_EPILOG = f"""\
examples:
  python -m training.world.make_dataset data/world
  python evaluate.py vqa data/world --out results/world
      the model that ships with this, on pictures of its world: nothing is downloaded
  python evaluate.py captions data/coco_val --model magma_v1_500 --out results/coco
      captions behind "A picture of", with BLEU, CIDEr and ROUGE-L
  python evaluate.py vqa data/vqa_val --model checkpoints/magma --out results/vqa4 \\
      --train data/vqa_train --shots 4
      answers behind four examples, each a picture, its question and its answer
  python evaluate.py captions data/mine --out results/try --limit 100 --skip_bad
      the first hundred samples, without those that cannot be read

OUT gets results.jsonl (a line for each answer), scores.json and report.html (open it in a browser).
Run the same command again after a stop: answers that are there are kept. With other settings name
another OUT.

Scores are times 100: BLEU by sacrebleu, CIDEr and ROUGE-L by pycocoevalcap.
A reference that begins with the prompt of captions is compared without it. In the prompt of vqa,
{QUESTION} is the question. Wrong input ends with one line "error: ..." and status 2.
"""


def _parser() -> ProgramParser:
    parser = ProgramParser(description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("task", metavar="TASK", choices=sorted(TASKS), help="captions or vqa")
    parser.add_argument("data", metavar="DATA", type=Path, help="the dataset's root folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the results")
    _add_model_options(parser.add_argument_group("the model"))
    _add_prompt_options(parser.add_argument_group("what it is asked"))
    _add_work_options(parser.add_argument_group("the work"))
    return parser


def _add_model_options(group: Any) -> None:
    group.add_argument(
        "--model",
        default=SHIPPED_PRESET,
        metavar="PATH_OR_PRESET",
        help="model folder, checkpoint or preset (default: %(default)s, which ships with this)",
    )
    group.add_argument("--config", metavar="PRESET", help="the checkpoint's, if it is no folder")
    group.add_argument("--device", help="such as cpu or cuda:0")


def _add_prompt_options(group: Any) -> None:
    group.add_argument("--prompt", metavar="TEXT", help="default: " + _defaults("prompt"))
    group.add_argument(
        "--shots", type=int, default=0, metavar="N", help="examples in a prompt (default: 0)"
    )
    group.add_argument("--train", type=Path, metavar="DATA", help="dataset of the examples")
    group.add_argument("--seed", type=int, default=0, help="of the draw of examples (default: 0)")
    group.add_argument(
        *("--max_out_tokens", "--max_new_tokens"),
        type=int,
        metavar="N",
        help="tokens of an answer at most; default: " + _defaults("max_new_tokens"),
    )


def _add_work_options(group: Any) -> None:
    group.add_argument("--batch", type=int, default=8, help="samples that run together (default 8)")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N samples")
    group.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(METRICS)}; default: " + _defaults("metrics"),
    )
    group.add_argument(
        "--shown", type=int, default=200, metavar="N", help="samples on the page (default: 200)"
    )
    group.add_argument("--skip_bad", action="store_true", help="leave bad samples out, and say so")
    group.add_argument("--log_level", metavar="LEVEL", default=default_level())


def _defaults(name: str) -> str:
    """An attribute of every task."""
    found = {key: getattr(task, name) for key, task in TASKS.items()}
    texts = {key: " ".join(v) if isinstance(v, tuple) else v for key, v in found.items()}
    return "; ".join(f"{text} ({key})" for key, text in texts.items())


def _check(options: argparse.Namespace) -> None:
    """Fills in the task's defaults and checks every value before any work."""
    task = TASKS[options.task]
    options.prompt = task.prompt if options.prompt is None else options.prompt
    options.metrics = options.metrics or list(task.metrics)
    if options.max_out_tokens is None:
        options.max_out_tokens = task.max_new_tokens
    for name, least in (("shots", 0), ("max_out_tokens", 1), ("batch", 1), ("shown", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be {least} or greater")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit is {options.limit}; it must be 1 or greater")
    if options.shots and options.train is None:
        raise UserError(f"--shots {options.shots} needs --train, the dataset of the examples")
    if options.task == "vqa" and QUESTION not in options.prompt:
        raise UserError(f"--prompt of vqa must say where the question stands: {QUESTION}")
    for name in options.metrics:
        if name not in METRICS:
            there = ", ".join(METRICS)
            raise UserError(f"unknown metric {name!r}{nearest(name, METRICS)} (there are: {there})")
    check_metrics(options.metrics)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the answers depend on."""
    names = ("task", "data", "model", "config", "prompt", "shots", "train", "seed")
    values = {name: getattr(options, name) for name in (*names, "max_out_tokens")}
    if not options.shots:
        values |= {"train": None, "seed": None}
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def _run(argv: Sequence[str]) -> None:
    options = _parser().parse_args(argv)
    setup_logging(check_level(options.log_level))
    _check(options)
    task, bad = TASKS[options.task], BadSamples(options.skip_bad)
    samples = read_samples(options.data, task, options.prompt, bad, options.limit)
    train = read_samples(options.train, task, options.prompt, bad) if options.shots else []
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out}: cannot make it: {error.strerror}") from error
    kept = ResultsFile(options.out / "results.jsonl", _settings(options))
    _answer_rest(options, samples, Examples(train, options.shots, options.seed, bad), bad, kept)
    pairs = [(kept.results[s.name], s) for s in samples if s.name in kept.results]
    if not pairs:
        raise UserError(f"{options.data}: all samples are bad, the first: {bad.lines[0]}")
    _write_scores(options, pairs, bad)


def _answer_rest(
    options: argparse.Namespace,
    samples: Sequence[Sample],
    examples: Examples,
    bad: BadSamples,
    kept: ResultsFile,
) -> None:
    """Answers what has no answer yet."""
    left = [sample for sample in samples if sample.name not in kept.results]
    if not left:
        return
    done = len(samples) - len(left)
    if done:
        _log.info("%d of %d samples have their answers already", done, len(samples))
    magma = Magma.from_pretrained(
        options.model, config=options.config, device=options.device, max_batch=options.batch
    )
    bar = tqdm(total=len(samples), initial=done, desc=options.task, unit="sample", disable=None)
    task, length = TASKS[options.task], options.max_out_tokens
    with magma, bar:
        for batch in answer_all(magma, task, left, examples, bad, options.batch, length):
            kept.add(batch)
            bar.update(min(options.batch, bar.total - bar.n))


def _write_scores(
    options: argparse.Namespace, pairs: Sequence[tuple[Result, Sample]], bad: BadSamples
) -> None:
    predictions = [result.prediction for result, _ in pairs]
    references = [result.references for result, _ in pairs]
    scored = {name: METRICS[name](predictions, references) for name in options.metrics}
    totals = {name: score.total for name, score in scored.items()}
    content = {
        "settings": _settings(options),
        "samples": len(pairs),
        "scores": totals,
        "left_out": bad.lines,
    }
    with atomic_file(options.out / "scores.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    shown = [
        Shown(result, sample.picture, _of_sample(scored, number))
        for number, (result, sample) in enumerate(pairs[: options.shown])
    ]
    title = f"{options.task}: {options.data}"
    page = report_page(title, totals, _settings(options), shown, len(pairs))
    with atomic_file(options.out / "report.html") as file:
        file.write(page.encode(errors="replace"))
    print(f"{len(pairs)} samples, {len(bad.lines)} left out")
    for name, total in totals.items():
        print(f"{name:<6} {total:6.2f}")
    print(f"{options.out / 'report.html'}")


def _of_sample(scored: dict[str, Scored], number: int) -> dict[str, float]:
    return {name: score.each[number] for name, score in scored.items() if score.each is not None}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 for wrong input, 130 when interrupted."""
    return run_program(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
