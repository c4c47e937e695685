"""Convert a checkpoint into a model folder, which is mapped as it is run; or verify one.

python -m execution.convert mp_rank_00_model_states.pt magma
python -m execution.convert --verify magma
python run_inference.py --checkpoint magma
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_quietly

    end_quietly()  # if Ctrl-C comes during the imports below

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from config.config import MagmaConfig
from config.parsing import parse_config
from utils.checkpoint import open_checkpoint
from utils.checkpoint_sources import RELEASE_PRESET
from utils.errors import UserError
from utils.folder_layout import QUANTISABLE
from utils.model_folder import folder_config, is_model_folder, verify_model_folder
from utils.model_folder_rows import STORAGES, Storage
from utils.model_folder_writer import write_model_folder
from utils.program import run_program

_EXAMPLES = """\
The checkpoint may be the published file, a safetensors file, an index or another model folder.
--config says which model it is, as for run_inference.py; a model folder says so itself. OUT
appears when it is complete; until then OUT.partial holds what is finished, and the same command
goes on after an interruption.
"""


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="what to convert")
    parser.add_argument("out", metavar="OUT", nargs="?", help="the folder to write")
    parser.add_argument(
        "--dtype",
        choices=STORAGES,
        default="float16",
        help="of the weights; int8 and int4 are for --quantise, with float16 for the rest",
    )
    parser.add_argument(
        "--quantise",
        nargs="+",
        choices=tuple(QUANTISABLE),
        default=["blocks"],
        metavar="PART",
        help="what int8 and int4 are for: blocks, adapters, head (default: blocks)",
    )
    parser.add_argument(
        "--verify", metavar="FOLDER", help="read a folder and compare it with its checksums"
    )


def _default_config(words: Sequence[str]) -> str | MagmaConfig:
    """What holds without --config: what the first model folder that is named says, or a preset."""
    folders = (Path(word) for word in words if is_model_folder(Path(word)))
    first = next(folders, None)
    return RELEASE_PRESET if first is None else folder_config(first)


def _run(argv: Sequence[str] | None) -> None:
    words = sys.argv[1:] if argv is None else argv
    config, options = parse_config(words, _default_config(words), _add_options, __doc__, _EXAMPLES)
    if options.verify is not None:
        if options.checkpoint is not None:
            raise UserError("--verify stands alone: it takes the folder and nothing else")
        count = verify_model_folder(options.verify, progress=True)
        print(f"{options.verify}: all {count} tensors are as they were written")
        return
    if options.out is None:
        raise UserError("name the checkpoint and the folder to write: CHECKPOINT OUT")
    checkpoint = open_checkpoint(options.checkpoint, config)
    storage = Storage(options.dtype, tuple(options.quantise))
    write_model_folder(checkpoint, config, options.out, storage, progress=True)
    size_bytes = sum(path.stat().st_size for path in Path(options.out).iterdir())
    print(f"wrote {options.out}: {size_bytes:,} bytes")


def main(argv: Sequence[str] | None = None) -> int:
    """Converts or verifies as the command line says; returns the exit status."""
    return run_program(lambda: _run(argv))


if __name__ == "__main__":
    sys.exit(main())
