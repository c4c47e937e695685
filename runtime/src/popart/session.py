"""``popart.session``: PopART's own session, and the exception for programs that do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from popart._types import DeviceInfo, PyStepIO
from popxl_torch.ir.errors import OutOfMemoryException

if TYPE_CHECKING:
    import numpy as np
    import popxl

__all__ = ["InferenceSession", "OutOfMemoryException"]


class InferenceSession:
    """Runs an Ir step by step, with arrays by the ids of streams. Made by :meth:`fromIr`."""

    _session: popxl.Session

    def __init__(self) -> None:
        raise TypeError("Cannot create an InferenceSession; use InferenceSession.fromIr.")

    @classmethod
    def fromIr(
        cls, ir: Any, deviceInfo: DeviceInfo | None = None, name: str = "fromIr"
    ) -> InferenceSession:
        """A session of an Ir handle (``popxl.Ir``'s ``_pb_ir``).

        Raises:
            RuntimeError: the program is empty.
        """
        import popxl  # the front end is built on this package

        self = cls.__new__(cls)
        self._session = popxl.Session(ir._program.frontend, deviceInfo or DeviceInfo())
        return self

    def prepareDevice(self, loadEngine: bool = True) -> None:
        """Attach and send the weights; needed before a run."""
        self._session._attach()

    def weightsFromHost(self) -> None:
        """Send the weights; ValueError before :meth:`prepareDevice`."""
        self._session.weights_from_host()

    def weightsToHost(self) -> None:
        """Fetch the weights; ValueError before :meth:`prepareDevice`."""
        self._session.weights_to_host()

    def initAnchorArrays(self) -> dict[str, np.ndarray]:
        """Uninitialised output arrays by stream id."""
        outputs = self._session.create_host_outputs()
        return {stream.tensor_id: array for stream, array in outputs.items()}

    def run(self, stepio: PyStepIO, debugName: str = "") -> None:
        """Execute once: ``stepio.inputs`` are read, ``stepio.outputs`` are filled in place.

        Raises:
            KeyError: an id that is no stream of the program.
            ValueError: not prepared, missing streams, or wrong shapes.
        """
        loads = {stream.tensor_id: stream for stream in self._session.expected_inputs()}
        stores = {stream.tensor_id: stream for stream in self._session._outputs}
        self._session.run_with_outputs(
            {loads[name]: array for name, array in stepio.inputs.items()},
            {stores[name]: array for name, array in stepio.outputs.items()},
        )
