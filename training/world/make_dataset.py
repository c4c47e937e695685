"""Pictures of the made world as a dataset in MAGMA's format, for `train.py` and `evaluate.py`.

    python -m training.world.make_dataset data/world --split held_out --pictures 200

Each sample has a caption, and a question about a fact with its answer.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from training.convert_dataset import Entry, convert_dataset
from training.world.captions import caption
from training.world.exam import topic_tasks
from training.world.pictures import draw
from training.world.scenes import SPLITS
from utils.errors import UserError
from utils.log import default_level, setup_logging
from utils.program import ProgramParser, run_program


def entries(folder: Path, split: str, count: int, seed: int, side: int) -> Iterator[Entry]:
    """Pictures with captions and questions, drawn as they are asked for.

    Args:
        folder: where the pictures are put, as PNG files.
        split: one of `training.world.scenes.SPLITS`.
        count: number of pictures.
        seed: another seed gives others.
        side: pixels along one side.
    """
    for number, task in enumerate(topic_tasks("fact", split, count, seed)):
        path = folder / f"{number:06d}.png"
        Image.fromarray(draw(task.scene, np.random.default_rng(task.picture_seed), side)).save(path)
        asked = {"question": task.question, "answers": [task.answer]}
        yield path, {"captions": [caption(task.scene)], "metadata": asked}


def _run(argv: Sequence[str]) -> None:
    parser = ProgramParser(prog="python -m training.world.make_dataset", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the dataset's folder, a new one")
    parser.add_argument("--split", choices=SPLITS, default="held_out", help="default: %(default)s")
    for name, default in (("pictures", 200), ("seed", 0), ("side", 256)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    options = parser.parse_args(argv)
    setup_logging(default_level())
    if options.out.exists():
        raise UserError(f"{options.out} exists; name a folder that does not")
    if min(options.pictures, options.side) < 1 or options.seed < 0:
        raise UserError("--pictures and --side must be 1 or greater, --seed 0 or greater")
    with tempfile.TemporaryDirectory() as folder:
        drawn = entries(Path(folder), options.split, options.pictures, options.seed, options.side)
        added = convert_dataset(options.out, drawn)
    print(f"{options.out}: {added} samples of the split {options.split}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; exit status as `utils.program.run_program` gives it."""
    return run_program(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
