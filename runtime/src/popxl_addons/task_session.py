"""TaskSession: a session with named streams, named variables and checkpoints."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import popdist
import popxl
from popxl.session import Session
from popxl_addons.named_tensors import NamedTensorData, NamedTensors
from popxl_addons.streams import InputStreams, OutputStreams
from popxl_addons.utils import timer

__all__ = ["TaskSession", "write_variables_pb"]

ReportMissingMethods = Literal["none", "warn", "error"]

_WANDB = "wandb://"


def write_variables_pb(session: Session, weights: Mapping[Any, np.ndarray]) -> None:
    """Write variables' data; the same as `session.write_variables_data`."""
    session.write_variables_data(dict(weights))


def _report_missing(
    what: str, found: Iterable[str], expected: Iterable[str], method: ReportMissingMethods
) -> None:
    found, expected = set(found), set(expected)
    if method == "none" or found == expected:
        return
    message = (
        f"{what}: missing {sorted(expected - found) or 'nothing'},"
        f" unknown {sorted(found - expected) or 'nothing'}"
    )
    if method == "error":
        raise ValueError(message)
    logging.warning(message)


class TaskSession(popxl.Session):
    """A session with its streams and variables under names.

    Args:
        inputs: streams to the device.
        outputs: streams from the device.
        state: variables, by name.
        max_checkpoints: checkpoints of this session to keep; older ones are deleted.
        args: arguments of `popxl.Session`.
        kwargs: the same.
    """

    def __init__(
        self,
        inputs: InputStreams | Iterable[popxl.HostToDeviceStream],
        outputs: OutputStreams | Iterable[popxl.DeviceToHostStream],
        state: NamedTensors,
        max_checkpoints: int = 1,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        with timer("PopXL compilation"):
            super().__init__(*args, **kwargs)
        as_inputs, as_outputs = InputStreams.from_streams, OutputStreams.from_streams
        self.inputs = inputs if isinstance(inputs, InputStreams) else as_inputs(inputs)
        self.outputs = outputs if isinstance(outputs, OutputStreams) else as_outputs(outputs)
        self.state = state
        self.session_state: dict[str, Any] = {"steps": 0}
        self._dataloader: Any = None
        self._max_checkpoints = max_checkpoints
        self._checkpoints: list[Path] = []

    @property
    def dataloader(self) -> Any:
        """Saved and resumed with checkpoints, if set."""
        if self._dataloader is None:
            logging.warning("TaskSession: no dataloader is set")
        return self._dataloader

    @dataloader.setter
    def dataloader(self, dl: Any) -> None:
        if not (hasattr(dl, "save") and hasattr(dl, "resume")):
            raise ValueError(f"TaskSession: a dataloader has methods save and resume, {dl!r} not")
        self._dataloader = dl

    def add_session_state_info(self, info: dict[str, Any]) -> None:
        """Add to `session_state`, which checkpoints hold as JSON."""
        self.session_state.update(info)

    def get_named_tensors_data(self) -> NamedTensorData:
        """Data of all of `state` by flat key, in host shapes (replica-group axis first)."""
        named: dict[str, Any] = self.state.named_tensors
        data = self.get_tensors_data(list(named.values()))
        return NamedTensorData.from_dict({key: data[t] for key, t in named.items()})

    def load_from_session(
        self, src: TaskSession, report_missing: ReportMissingMethods = "none"
    ) -> None:
        """Copy the variables that both sessions have from `src`.

        Raises:
            ValueError: keys differ and `report_missing` is "error".
        """
        named: dict[str, Any] = self.state.named_tensors
        data = src.get_named_tensors_data().to_dict()
        _report_missing("load_from_session", data, named, report_missing)
        self.write_variables_data({t: data[key] for key, t in named.items() if key in data})

    def wandb_histogram(self, name: str, step: int, data: np.ndarray) -> None:
        """Log a histogram to wandb."""
        import wandb  # type: ignore[import-not-found]

        wandb.log({name: wandb.Histogram(data)}, step=step)

    def wandb_variable_histograms(self, step: int = 0) -> None:
        """Log a histogram of each variable to wandb."""
        for name, data in self.get_named_tensors_data().to_dict().items():
            self.wandb_histogram(name, step, data)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write variables, session state and the dataloader's state.

        The oldest checkpoint of this session is deleted first if there would be more than
        `max_checkpoints`. (mended) Saving to the same path again overwrites it.

        Args:
            checkpoint_dir: folder (`~` is expanded), or `wandb://<artifact name>`.
        """
        data = self.get_named_tensors_data()
        if popdist.getInstanceIndex() != 0:
            return
        if checkpoint_dir.startswith(_WANDB):
            self._save_wandb_artifact(checkpoint_dir.removeprefix(_WANDB), data)
            return
        path = Path(checkpoint_dir).expanduser()
        self._delete_oldest(path)
        self._write_checkpoint(path, data)
        self._checkpoints.append(path)

    def _delete_oldest(self, path: Path) -> None:
        self._checkpoints = [p for p in self._checkpoints if p != path]
        while self._checkpoints and len(self._checkpoints) >= self._max_checkpoints:
            oldest = self._checkpoints.pop(0)
            try:
                shutil.rmtree(oldest)
            except OSError as e:
                logging.warning("TaskSession: could not delete checkpoint %s: %s", oldest, e)

    def _write_checkpoint(self, path: Path, data: NamedTensorData) -> None:
        model = path / "model"
        model.mkdir(parents=True, exist_ok=True)
        for key, array in data.to_dict().items():
            if isinstance(array, np.memmap):
                array.flush()
                shutil.copy(str(array.filename), model)
            else:
                arrays: dict[str, Any] = {key: array}
                np.savez(model / f"{key}.npz", **arrays)
        (path / "session_info.json").write_text(json.dumps(self.session_state))
        if self._dataloader is not None:
            self._dataloader.save(str(path / "dataloader.bin"))

    def _save_wandb_artifact(self, name: str, data: NamedTensorData) -> None:
        import wandb

        with tempfile.TemporaryDirectory() as folder:
            self._write_checkpoint(Path(folder), data)
            artifact = wandb.Artifact(name, type="model")
            artifact.add_dir(folder)
            wandb.log_artifact(artifact)

    def load_checkpoint(
        self,
        checkpoint_dir: str,
        report_missing: ReportMissingMethods = "warn",
        skip_memmap: bool = False,
    ) -> None:
        """Read what `save_checkpoint` wrote, except memory-mapped variables.

        Args:
            checkpoint_dir: folder, as it is.
            report_missing: what to do if keys differ: "none", "warn" or "error".
            skip_memmap: accepted for compatibility; maps are never read here.

        Raises:
            ValueError: keys differ and `report_missing` is "error".
        """
        path = Path(checkpoint_dir)
        files = {file.name.removesuffix(".npz"): file for file in path.glob("model/*.npz")}
        named: dict[str, Any] = self.state.named_tensors
        _report_missing("Checkpoint variables", files, named, report_missing)
        self.write_variables_data({named[k]: _load(files[k], k) for k in files if k in named})
        dataloader_state = path / "dataloader.bin"
        if self._dataloader is not None and dataloader_state.exists():
            self._dataloader.resume(filename=str(dataloader_state))
            if hasattr(self._dataloader, "get_state"):
                self._dataloader.get_state()
        info = path / "session_info.json"
        state = json.loads(info.read_text()) if info.exists() else {"steps": 0}
        _report_missing("Checkpoint session state", state, self.session_state, report_missing)
        self.session_state = state

    def run(
        self,
        inputs: Mapping[popxl.HostToDeviceStream, Any] | None = None,
        downcast_inputs: bool = True,
    ) -> dict[popxl.DeviceToHostStream, np.ndarray]:
        """Run once; `session_state["steps"]` counts the runs."""
        self.session_state["steps"] += 1
        return super().run(inputs, downcast_inputs)


def _load(file: Path, key: str) -> np.ndarray:
    with np.load(file) as archive:
        return archive[key]


def initialise_memmap_dir_from_checkpoint(checkpoint_dir: str, memmap_dir: str) -> None:
    """Copy a checkpoint's raw memory maps to the folder that a session will map."""
    target = Path(memmap_dir)
    target.mkdir(parents=True, exist_ok=True)
    for file in Path(checkpoint_dir).glob("model/*.npy"):
        shutil.copy(file, target)
