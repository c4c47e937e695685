"""What a run leaves for people: a progress bar, a file of losses, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from training.config import TrainConfig
from utils.errors import UserError
from utils.files import atomic_file

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger(__name__)

LOSS_FILE = "losses.jsonl"


def trackers(config: TrainConfig) -> list[str]:
    """accelerate's names of the trackers that the settings ask for.

    Raises:
        UserError: the package of one is not installed.
    """
    asked = {
        "tensorboard": config.tensorboard and config.save is not None,
        "wandb": config.wandb_project is not None,
    }
    for name, wanted in asked.items():
        if wanted and importlib.util.find_spec(name) is None:
            raise UserError(f"logging to {name} needs its package: pip install {name}")
    return [name for name, wanted in asked.items() if wanted]


class RunLog:
    """The logs of one run, written by the main process alone."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, step: int) -> None:
        """Opens the logs of a run that has done so many steps; what they say of later ones goes."""
        self._accelerator = accelerator
        self._file: Path | None = None
        if config.save is not None and accelerator.is_main_process:
            folder = Path(config.save)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{folder}: cannot make the folder: {error.strerror}") from error
            self._file = folder / LOSS_FILE
            _drop_after(self._file, step)
        accelerator.init_trackers(
            config.wandb_project or config.name,
            init_kwargs={
                "tensorboard": {"purge_step": step + 1},
                "wandb": {"name": config.name},
            },
        )
        # None: shown only where the output is a terminal.
        disable = None if accelerator.is_main_process else True
        self._bar = tqdm(total=config.train_steps, initial=step, unit="step", disable=disable)

    def advance(self, loss: float) -> None:
        """Counts a step in the progress bar."""
        self._bar.update()
        self._bar.set_postfix(loss=f"{loss:.4f}")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step, by name."""
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self._accelerator.log(values, step=step)

    def captions(self, step: int, found: Sequence[tuple[str, str]]) -> None:
        """Expected and found sample captions."""
        with logging_redirect_tqdm():
            for expected, answer in found:
                _log.info("step %d: expected %r, found %r", step, expected, answer)
        text = "\n\n".join(f"expected: {expected}\n\nfound: {answer}" for expected, answer in found)
        if found:
            self._accelerator.log({"inference/captions": text}, step=step)

    def close(self) -> None:
        """Ends the logs."""
        self._bar.close()
        self._accelerator.end_training()


def _drop_after(path: Path, step: int) -> None:
    """Leaves the lines up to a step: the steps after it will be done again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if entry["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the line that a kill cut short
    with atomic_file(path) as file:
        file.write("".join(f"{line}\n" for line in kept).encode())
