"""Sessions: the one door from a program to the engine that runs it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import popart
from popxl import dtypes
from popxl._variables import _is_frozen
from popxl.ir import Ir
from popxl.streams import DeviceToHostStream, HostToDeviceStream
from popxl.tensor import Constant, HostScalarTensor, Variable
from popxl.utils import _to_device_info, downcast_np_dtypes, to_numpy
from popxl_torch.ir.ambiguity import check_order
from popxl_torch.ir.errors import popart_runtime_error

if TYPE_CHECKING:
    from popxl_torch.executor.engine import Engine
    from popxl_torch.ir import records

d2hStreamBufferMaps = Mapping[DeviceToHostStream, np.ndarray]
h2dStreamBufferMaps = Mapping[HostToDeviceStream, HostScalarTensor]
StreamBufferMaps = d2hStreamBufferMaps | h2dStreamBufferMaps

_UNREADABLE = ("int8", "uint8", "complex64", "complex128")


class Session:
    """Compiles an Ir and runs it. Use it as a context: entering sends the weights to the device,
    leaving fetches them."""

    def __init__(
        self,
        ir: Ir,
        device_desc: Literal["ipu_hw", "ipu_model", "cpu"] | popart.DeviceInfo = "cpu",
        weights_to_host_on_exit: bool = True,
    ) -> None:
        """Compile ``ir``.

        Args:
            ir: the program; nothing should be added to it afterwards.
            device_desc: ``ipu_hw`` and ``ipu_model`` mean this engine's device; ``cpu`` also
                checks that the program needs a single device, as ever.
            weights_to_host_on_exit: whether leaving the context fetches the weights.

        Raises:
            ValueError: an unknown device, or ``cpu`` for a program with several replicas or IPUs.
            RuntimeError: nothing remains when unused variables and uncalled graphs are dropped.
            popart_exception: the program is not well-formed, or leaves the order of writes in place
                open ("Inplacing ambiguity detected.").
        """
        from popxl_torch.executor.engine import Engine
        from popxl_torch.settings import read_settings

        self._ir = ir
        self._can_attach = True
        _remove_unused(ir._program)
        self._check_device(device_desc)
        if ir.replication_factor != ir.instance_replication_factor:
            raise NotImplementedError("One process runs all replicas: launch a single instance.")
        ir._program.replication = ir.replication_factor
        settings = read_settings(ir._program.options.engineOptions)
        self._engine: Engine = Engine(ir._program, settings)
        if ir._program.options.enableInplaceAmbiguityChecking:
            check_order(ir._program)
        ir._program.prepared = True
        self._inputs = set(ir.get_all_h2d_streams())
        self._outputs = set(ir.get_all_d2h_streams())
        self._axes = (ir.num_host_transfers, ir.replication_factor)
        self._exact = {
            stream: (stream.dtype.as_numpy(), self._full_input_shape(stream.shape))
            for stream in self._inputs | self._outputs
            if stream.dtype.as_numpy() not in downcast_np_dtypes and not _is_fp8(stream.dtype)
        }
        self._was_attached_stack: list[Any] = []
        self._device: Any = popart.DeviceInfo(settings.device or "cpu")
        if isinstance(device_desc, popart.DeviceInfo):
            self._device = device_desc
        self._attached = False
        self._stale = False
        self.weights_to_host_on_exit = weights_to_host_on_exit and not ir._read_only
        if self._device.isAttached:
            self._attach()

    def _check_device(self, device_desc: Any) -> None:
        if isinstance(device_desc, popart.DeviceInfo):
            return
        if os.environ.get("POPXL_OFFLINE_DEVICE"):
            self._can_attach = False
            return
        _to_device_info(device_desc)
        ipus = 1 + max(
            (op.ipu for g in self._ir._program.graphs.values() for op in g.ops), default=0
        )
        wanted = ipus * self._ir.instance_replication_factor
        needed = 1 << (wanted - 1).bit_length()
        if device_desc == "cpu" and needed > 1:
            raise ValueError(
                f"The program needs {needed} devices, but multiple devices (replicas or IPUs) are"
                " not supported on 'cpu'; use 'ipu_hw' or 'ipu_model'."
            )

    # -- properties -------------------------------------------------------------------------

    @property
    def ir(self) -> Ir:
        """The program."""
        return self._ir

    ir_ = ir

    @property
    def is_attached(self) -> bool:
        """Whether the weights are on the device."""
        return self._attached

    @property
    def _pb_session(self) -> Any:
        return _SessionHandle(self)

    def _set_device(self, device: Any) -> None:
        self._device = device

    def _mark_stale(self, stale: bool) -> None:
        self._stale = self._ir._stale = stale

    # -- context ----------------------------------------------------------------------------

    def __enter__(self) -> Session:
        attached = self._attached
        if not attached:
            self._attach()
        self._was_attached_stack.append(attached)
        return self

    def _attach(self) -> None:
        if not self._can_attach:
            raise RuntimeError("Could not attach: the session was compiled for an offline device.")
        self._attached = True
        try:
            self.weights_from_host()
        except BaseException:
            self._attached = False
            raise

    def __exit__(self, exc_type: object, exc_value: object, exc_tb: object) -> None:
        if self._was_attached_stack.pop():
            return
        try:
            if exc_type is None and self.weights_to_host_on_exit:
                self.weights_to_host()
        finally:
            self._attached = False
            self._engine.release()
            self._mark_stale(False)

    def _check_attached(self) -> None:
        if not self._attached:
            raise ValueError("Must be attached to device before calling a runtime function.")

    # -- weights ----------------------------------------------------------------------------

    def weights_from_host(self) -> None:
        """Send every variable's host value to the device."""
        self._check_attached()
        self._engine.weights_from_host()
        self._mark_stale(False)

    def weights_to_host(self) -> None:
        """Fetch every variable; Exception if one is a read-only memory map."""
        self._check_attached()
        if self._ir._read_only:
            raise Exception("The Ir has a read-only np.memmap variable: weights cannot be fetched.")
        self._engine.weights_to_host()
        self._mark_stale(False)

    def get_tensor_data(self, tensor: Variable | Constant) -> np.ndarray:
        """Value of a variable (host shape, fetched first if stale) or constant.

        Raises:
            TypeError: any other tensor.
            ValueError: a dtype that cannot be read back.
        """
        return self.get_tensors_data([tensor])[tensor]

    def get_tensors_data(
        self, tensors: Iterable[Variable | Constant]
    ) -> dict[Constant | Variable, np.ndarray]:
        """Values of several variables and constants; see :meth:`get_tensor_data`.

        (quirk) The argument is walked twice: a generator gives an empty dict.
        """
        from popxl_torch.executor.variables import retrieved

        for tensor in tensors:
            if not isinstance(tensor, Variable | Constant):
                raise TypeError(f"Tensor {tensor} is not of type Constant or Variable.")
            if tensor.dtype.name in _UNREADABLE:
                raise ValueError(f"{tensor.dtype} is not supported for get_tensor_data retrieval.")
        if self._attached and self._stale and any(isinstance(t, Variable) for t in tensors):
            self.weights_to_host()
        return {
            tensor: retrieved(tensor._value.data, tensor.shape)
            if isinstance(tensor, Variable)
            else tensor._value.data
            for tensor in tensors
        }

    def write_variable_data(self, tensor: Variable, data: np.ndarray) -> None:
        """Set a variable's value; see :meth:`write_variables_data`."""
        self.write_variables_data({tensor: data})

    def write_variables_data(self, tensors: dict[Variable, np.ndarray]) -> None:
        """Set values of variables. Arrays that nobody can write are adopted, others copied.

        So are array-likes that name their storage in an attribute ``popxl_storage``: the engine
        takes what is stored (see runtime/README.md).

        While attached, all host values are sent to the device once. (quirk) Values that a run
        changed and nobody fetched revert.

        Raises:
            TypeError: not a variable, or data of another dtype (nothing is downcast).
            ValueError: data of another shape than the variable's ``shape_on_host``.
            NotImplementedError: retrieval mode all_replicas with several members per group.
        """
        for variable, data in tensors.items():
            self._write_one(variable, data)
        if self._attached:
            self.weights_from_host()

    def _write_one(self, variable: Variable, data: Any) -> None:
        if not isinstance(variable, Variable):
            raise TypeError(f"Tensor {variable} is not of type Variable.")
        store = variable._value.data
        if store.all_replicas and store.group_size > 1:
            raise NotImplementedError(
                f"Writing {variable}, of which all replicas are retrieved, is not supported."
            )
        wanted = variable.dtype.as_numpy()
        if isinstance(data, bool | int | float):
            if variable.dtype.name.startswith("float8"):
                raise TypeError(f"A Python number cannot be written to {variable}.")
            data = np.array(data, wanted)
        if data.dtype != wanted:
            raise TypeError(
                f"The dtype {data.dtype} of the data for {variable} must match the equivalent type"
                f" {wanted}."
            )
        if tuple(data.shape) != tuple(variable.shape_on_host):
            raise ValueError(
                f"The shape {data.shape} of the data must match the shape of {variable} on the"
                f" host, {variable.shape_on_host}."
            )
        store.retrieved = None
        if store.memmap is not None:
            store.memmap[...] = data
        else:
            keep = _is_frozen(data) or hasattr(data, "popxl_storage")
            store.host = data if keep else np.array(data)

    # -- runs -------------------------------------------------------------------------------

    def _full_input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Array shape of a stream: transfers and replicas in front, unless they are 1."""
        return (*(n for n in self._axes if n > 1), *shape)

    def _is_exact(self, stream: Any, array: Any) -> bool:
        """Whether an array is just what a stream asks for, so that nothing is left to check."""
        if type(array) is not np.ndarray or stream not in self._exact:
            return False
        dtype, shape = self._exact[stream]
        return array.dtype == dtype and array.shape == shape

    def expected_inputs(self) -> set[HostToDeviceStream]:  # (quirk) a set
        """Input streams that some op loads from."""
        return set(self._inputs)

    def create_host_outputs(self) -> dict[DeviceToHostStream, np.ndarray]:
        """Uninitialised arrays for :meth:`run_with_outputs`."""
        return {
            stream: np.empty(self._full_input_shape(stream.shape), stream.dtype.as_numpy())
            for stream in self._outputs
        }

    def run(
        self, inputs: h2dStreamBufferMaps | None = None, downcast_inputs: bool = True
    ) -> dict[DeviceToHostStream, np.ndarray]:
        """Execute the main graph once.

        Args:
            inputs: one array per expected stream, of shape ([transfers,] [replicas,] *stream).
            downcast_inputs: convert 64-bit input to 32 bit.

        Returns:
            One fresh array per output stream.

        Raises:
            ValueError: detached, missing or extra streams, or wrong shapes.
            popart_runtime_error: an input's dtype is not its stream's.
        """
        outputs = self.create_host_outputs()
        self.run_with_outputs(inputs, outputs, downcast_inputs)
        return outputs

    def run_with_outputs(
        self,
        inputs: h2dStreamBufferMaps | None = None,
        outputs: d2hStreamBufferMaps | None = None,
        downcast_inputs: bool = True,
    ) -> None:
        """As :meth:`run`, but fills the given arrays in place.

        [defect] Output arrays of another dtype than their stream's were overwritten with raw bytes;
        they are refused.
        """
        self._check_attached()
        arrays = self._validate_run_inputs(inputs or {}, downcast_inputs)
        targets = self._validate_run_outputs(outputs or {})
        self._mark_stale(True)
        self._engine.run(arrays, targets)

    def _validate_run_inputs(self, inputs: Mapping, downcast: bool) -> dict[Any, np.ndarray]:
        _check_streams("input", inputs, self._inputs)
        arrays = {}
        for stream, data in inputs.items():
            if self._is_exact(stream, data):
                arrays[stream._record] = data
                continue
            dtype = stream.dtype if _is_fp8(stream.dtype) else None
            array = to_numpy(data, dtype, downcast=downcast, copy=False)
            array = data if _same_array(array, data) else array
            wanted = stream.dtype.as_numpy()
            if array.dtype != wanted and not _is_int64_for_int32(array, wanted):
                raise popart_runtime_error(
                    f"Type discrepancy for stream {stream.tensor_id}: expected {wanted}, got"
                    f" {array.dtype}"
                )
            array = array.astype(wanted, copy=False)
            arrays[stream._record] = self._checked_shape("Input", stream, array)
        return arrays

    def _validate_run_outputs(self, outputs: Mapping) -> dict[Any, np.ndarray]:
        _check_streams("output", outputs, self._outputs)
        targets = {}
        for stream, array in outputs.items():
            if self._is_exact(stream, array):
                targets[stream._record] = array
                continue
            wanted = stream.dtype.as_numpy()
            if array.dtype != wanted:
                raise popart_runtime_error(
                    f"Type discrepancy for stream {stream.tensor_id}: expected {wanted}, got"
                    f" {array.dtype}"
                )
            target = self._checked_shape("Output", stream, array)
            if array.size and not np.may_share_memory(target, array):
                raise ValueError(f"The output array for {stream} cannot be filled in place.")
            targets[stream._record] = target
        return targets

    def _checked_shape(self, what: str, stream: Any, array: np.ndarray) -> np.ndarray:
        transfers, replicas = self._axes
        expected = self._full_input_shape(stream.shape)
        leading = len(expected) - len(stream.shape)
        if array.shape == expected:
            return array
        if stream._record.spec.nelms == 1:
            if array.size == int(np.prod(expected)):
                return array.reshape(expected)  # one element each, however shaped
            if array.ndim >= leading and int(np.prod(array.shape[leading:])) == 1:
                array = array.reshape((*array.shape[:leading], *stream.shape))
        if transfers > 1 and array.ndim and array.shape[0] < transfers:
            raise ValueError(
                f"{what} array for stream {stream}: dimension 0 of {array.shape} is not large"
                f" enough for {transfers} transfers."
            )
        if replicas > 1 and array.ndim >= leading and array.shape[leading - 1] != replicas:
            raise ValueError(
                f"{what} array for stream {stream}: the replica dimension of {array.shape} is the"
                f" wrong size, expected {replicas}."
            )
        if array.ndim != len(expected) or array.shape[leading:] != expected[leading:]:
            raise ValueError(
                f"Shape mismatch: {what} array for stream {stream} has shape {array.shape},"
                f" expected {expected} ({transfers} transfers, {replicas} replicas)."
            )
        return array


def _remove_unused(program: records.Program) -> None:
    """Drop graphs that nothing calls, then variables of no op unless they are remote.

    Raises:
        RuntimeError: nothing remains.
    """
    main = program.main
    reached = {main.id: main}
    pending = [main]
    while pending:
        for op in pending.pop().ops:
            for graph in op.graphs:
                if graph.id not in reached:
                    reached[graph.id] = graph
                    pending.append(graph)
    for graph_id in [graph_id for graph_id in program.graphs if graph_id not in reached]:
        del program.graphs[graph_id]
    used = {value for op in main.ops for value in op.inputs} | set(main.outputs)
    variables = [value for value in main.values.values() if value.kind == "variable"]
    for value in variables:
        if value not in used and value.data.buffer is None:
            del main.values[value.id]
    if not main.ops and not any(value.data.buffer is not None for value in variables):
        raise RuntimeError("The Ir has no graphs: nothing remains to be run.")


def _check_streams(what: str, arrays: Mapping, expected: set) -> None:
    given = arrays.keys()
    if given == expected:
        return
    for word, streams in (("Unexpected", given - expected), ("Missing", expected - given)):
        if streams:
            names = ", ".join(sorted(str(stream) for stream in streams))
            raise ValueError(f"{word} {what}: {names}")


def _is_fp8(dtype: dtypes.dtype) -> bool:
    return dtype.name.startswith("float8")


def _same_array(array: np.ndarray, data: Any) -> bool:
    """Whether conversion only made ``data`` contiguous: then strides of 0 are worth keeping."""
    return isinstance(data, np.ndarray) and data.dtype == array.dtype


def _is_int64_for_int32(array: np.ndarray, wanted: np.dtype) -> bool:
    return array.dtype == np.int64 and wanted == np.int32


class _SessionHandle:
    """``session._pb_session``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def writeWeights(self, io: popart.PyWeightsIO) -> None:
        """Set host values of variables from arrays by tensor id."""
        for tensor_id, data in io.weights.items():
            self._session._write_one(self._variable(tensor_id), data)

    def readWeights(self, io: popart.PyWeightsIO) -> None:
        """Copy host values of variables into arrays by tensor id."""
        from popxl_torch.executor.variables import retrieved

        for tensor_id, array in io.weights.items():
            variable = self._variable(tensor_id)
            array[...] = retrieved(variable._value.data, variable.shape)

    def _variable(self, tensor_id: str) -> Any:
        return self._session.ir.main_graph.get_tensor(tensor_id)

    def getReport(self) -> None:
        """popart_exception: only the SDK profiles a compiled program."""
        raise popart.popart_exception("There is no report: nothing is compiled for an IPU.")

    def copyDeviceWeightsToHost(self) -> None:
        """Fetch the weights."""
        self._session.weights_to_host()

    def setEngineIsLoaded(self, value: bool) -> None:
        """Nothing is loaded to a device that would have to be loaded again."""

    def weightsFromHost(self) -> None:
        """Send the weights."""
        self._session.weights_from_host()

    def areHostWeightsInSync(self) -> bool:
        """Whether no run happened since the last transfer."""
        return not self._session._stale

    def markHostWeightsOutOfSync(self) -> None:
        """Make the next read fetch."""
        self._session._mark_stale(True)
