"""What weights of 8 or 4 bits cost in quality: the same texts read by the same model at float16.

For each picture and text the model reads the picture and then the text as given (teacher forcing);
at every position of the text the distribution of the next token with quantised weights, q, is
compared with that of float16, p: Kullback-Leibler divergence KL(p‖q), and whether both would
choose the same token. Beside it each layer's weights: root mean square of the rounding error over
that of the weights.

    python -m benchmarks.quantise_report CHECKPOINT --config magma_v1_500 --data pairs.csv

The data are rows of a CSV file: picture (path, from the file's folder), text. Or, for the model
that ships, captions of scenes that no training saw:

    python -m benchmarks.quantise_report models/world --config world --scenes 100
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import machine, record, table
from config.config import MagmaConfig
from config.parsing import parse_config
from execution.magma import Magma
from execution.runs import image_host, next_logits, words_host
from utils.checkpoint import Checkpoint, open_checkpoint
from utils.checkpoint_sources import RELEASE_PRESET
from utils.errors import UserError
from utils.folder_layout import QUANTISABLE, folder_tensors, part_of, slab_of
from utils.images import load_image, preprocess
from utils.model_folder_rows import Storage
from utils.model_folder_writer import write_model_folder
from utils.program import run_program
from utils.quantise import FORMATS, can_quantise

Pair = tuple[Path, str]
Parts = tuple[str, ...]


def read_pairs(path: Path) -> list[Pair]:
    """Pictures and texts of a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot read the pairs: {error}") from error
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise UserError(f"{path}: row {number} has {len(row)} columns; expected picture, text")
    if not rows:
        raise UserError(f"{path}: holds no pairs")
    return [(path.parent / picture, text) for picture, text in rows]


def scene_pairs(folder: Path, count: int) -> list[Pair]:
    """Held-out scenes of the shipped model's world: pictures, drawn into a folder, and captions."""
    from benchmarks.measure_world import PICTURE_SIDE, SEED
    from training.world.captions import caption
    from training.world.exam import caption_tasks
    from training.world.pictures import draw

    pairs = []
    for number, task in enumerate(caption_tasks("held_out", count, SEED)):
        picture = draw(task.scene, np.random.default_rng(task.picture_seed), PICTURE_SIDE)
        path = folder / f"{number}.png"
        Image.fromarray(picture).save(path)
        pairs.append((path, caption(task.scene)))
    return pairs


def log_probabilities(folder: Path, pairs: Sequence[Pair]) -> Iterator[np.ndarray]:
    """For each pair the log-probabilities of the next token behind each token, (t, v) float64."""
    with Magma.from_pretrained(folder, scheme="recompute", max_batch=1) as magma:
        config, session = magma.config, magma.open_session()
        for picture, text in pairs:
            ids = magma.tokenizer.encode(text)[: config.text_tokens]
            padded = np.zeros((1, config.text_tokens), np.int32)
            padded[0, : len(ids)] = ids
            pixels = preprocess(load_image(picture), config.visual.image_resolution)
            inputs = {
                session.inputs.words: words_host(config, padded),
                session.inputs.image: image_host(config, pixels),
            }
            outputs = session.run(inputs)[session.outputs.logits]
            logits = [next_logits(config, outputs, 0, n) for n in range(len(ids))]
            yield _log_softmax(np.stack(logits).astype(np.float64))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def compare(p: Sequence[np.ndarray], q: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """KL divergences and agreements, one of each position of all texts."""
    divergences, agreements = [], []
    for reference, ours in zip(p, q, strict=True):
        divergences += list((np.exp(reference) * (reference - ours)).sum(axis=-1))
        agreements += list((reference.argmax(-1) == ours.argmax(-1)).astype(float))
    return {"kl_nats": divergences, "same_choice": agreements}


def most_parts(config: MagmaConfig, format: str) -> Parts:
    """All parts of a model that a format can store."""
    shapes: dict[str, list[tuple[int, ...]]] = {part: [] for part in QUANTISABLE}
    for name, entry in folder_tensors(config).items():
        if part := part_of(name):
            shapes[part].append(entry.shape)
    return tuple(p for p in shapes if all(can_quantise(shape, format) for shape in shapes[p]))


def weight_errors(reference: Checkpoint, ours: Checkpoint) -> dict[str, float]:
    """By slab: the rounding error of its quantised weights over the weights, root mean squares."""
    error: dict[str, float] = {}
    size: dict[str, float] = {}
    for name in ours:
        if part_of(name) is None or ours.dtype(name) not in ("int8", "uint8"):
            continue
        numbers = np.asarray(ours[name]).astype(np.float32).ravel()
        exact = reference[name].astype(np.float32).ravel()
        slab = slab_of(name)
        error[slab] = error.get(slab, 0.0) + float(((numbers - exact) ** 2).sum())
        size[slab] = size.get(slab, 0.0) + float((exact**2).sum())
    return {slab: (error[slab] / size[slab]) ** 0.5 for slab in error}


def measure(
    checkpoint: Checkpoint,
    config: MagmaConfig,
    pairs: list[Pair],
    choices: Mapping[str, Sequence[Parts]],
) -> record.Result:
    """Converts the checkpoint into each format and reads the pairs with all.

    Args:
        checkpoint: In float16 or float32.
        config: Of it.
        pairs: Pictures and texts.
        choices: What is quantised, by format: each of them.
    """
    rows, samples = [], {}
    with tempfile.TemporaryDirectory(dir=checkpoint.path.parent) as temporary:
        exact = Path(temporary) / "float16"
        write_model_folder(checkpoint, config, exact, Storage(), progress=True)
        reference = list(log_probabilities(exact, pairs))
        for format, parts in ((f, parts) for f in choices for parts in choices[f]):
            name = f"{format}: {', '.join(parts)}"
            folder = Path(temporary) / name
            write_model_folder(checkpoint, config, folder, Storage(format, parts), progress=True)
            found = compare(reference, list(log_probabilities(folder, pairs)))
            opened = [open_checkpoint(path, config) for path in (exact, folder)]
            errors = weight_errors(*opened)
            samples |= {f"{name}: {what}": values for what, values in found.items()}
            samples[f"{name}: weight_error"] = list(errors.values())
            rows.append(_row(name, found, errors))
    return record.Result(
        bench="quantise_report",
        title="Quality of quantised weights beside float16",
        columns=(
            "weights",
            "KL, mean (nats)",
            "KL, 99th percentile",
            "same choice",
            "weight error, least layer",
            "worst layer",
        ),
        rows=rows,
        samples=samples,
        setting={
            "checkpoint": checkpoint.path.name,
            "pairs": len(pairs),
            "config": config.as_dict(),
        },
        notes=(
            f"{sum(map(len, reference))} positions of {len(pairs)} texts with their pictures, read"
            f" as given, by {checkpoint.path.name}.",
            "int8 has a scale for each row, int4 one for 32 weights; what is not named is float16.",
        ),
        command="quantise_report CHECKPOINT --data FILE",
    )


def _row(name: str, found: dict[str, list[float]], errors: dict[str, float]) -> tuple[str, ...]:
    divergence, same = np.array(found["kl_nats"]), np.array(found["same_choice"])
    return (
        name,
        f"{divergence.mean():.2g}",
        f"{np.quantile(divergence, 0.99):.2g}",
        f"{100 * same.mean():.1f} %",
        f"{100 * min(errors.values()):.2f} %",
        f"{100 * max(errors.values()):.2f} %",
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="in float16 or float32")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="FILE.csv", help="rows: picture, text")
    source.add_argument("--scenes", type=int, metavar="N", help="of the shipped model's world")
    parser.add_argument(
        "--quantise",
        nargs="+",
        choices=tuple(QUANTISABLE),
        metavar="PART",
        help="what is quantised: blocks, adapters, head (default: blocks, and then all)",
    )


def _run(argv: Sequence[str] | None) -> None:
    config, options = parse_config(argv, RELEASE_PRESET, _add_options, __doc__)
    choices = {
        format: [tuple(options.quantise)]
        if options.quantise
        else [("blocks",), most_parts(config, format)]
        for format in FORMATS
    }
    with tempfile.TemporaryDirectory() as folder:
        data = options.data
        pairs = read_pairs(Path(data)) if data else scene_pairs(Path(folder), options.scenes)
        checkpoint = open_checkpoint(options.checkpoint, config)
        result = measure(checkpoint, config, pairs, choices)
    table.publish(result, [machine.measure_rates()])


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    return run_program(lambda: _run(argv))


if __name__ == "__main__":
    sys.exit(main())
