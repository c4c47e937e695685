"""Thin views of IR records behind the ``_pb_*`` attributes that programs and addons read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from popart._internal.ir import _rewrite
from popart._internal.ir._records import (
    GraphId,
    LocationInfo,
    OperatorIdentifier,
    Region,
    Settings,
    TensorInfo,
    TensorType,
)
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import opdef

if TYPE_CHECKING:
    from popxl_torch.ir import records


_LOG = logging.getLogger("popart")
_TENSOR_TYPES = {
    "variable": TensorType.Variable,
    "constant": TensorType.Const,
    "stream": TensorType.Stream,
}


class Ir:
    """``ir._pb_ir``."""

    def __init__(self, program: records.Program) -> None:
        self._program = program

    def getSessionOptions(self) -> Any:
        """The live options."""
        return self._program.options

    def getId(self) -> int:
        """Id of the Ir."""
        return self._program.id

    def isPrepared(self) -> bool:
        """Whether a session exists."""
        return self._program.prepared

    def getAllGraphs(self) -> list[Graph]:
        """Every graph."""
        return [Graph(graph) for graph in self._program.graphs.values()]

    def getMainGraph(self) -> Graph:
        """The main graph."""
        return Graph(self._program.main)

    def getGraph(self, graph_id: str) -> Graph:
        """The graph with this id; popart_exception if there is none."""
        try:
            return Graph(self._program.graphs[str(graph_id)])
        except KeyError:
            raise popart_exception(f"No graph with id {graph_id!r}") from None

    def getTensor(self, tensor_id: str) -> Tensor:
        """The tensor with this id, in any graph; popart_exception if there is none."""
        for graph in self._program.graphs.values():
            if tensor_id in graph.values:
                return Tensor(graph.values[tensor_id])
        raise popart_exception(f"No tensor with id {tensor_id!r}")

    def logIr(self) -> None:
        """Log every graph and op."""
        for graph in self._program.graphs.values():
            _LOG.info("%s", graph)
            for op in graph.ops:
                _LOG.info("  %s = %s(%s)", op.outputs, op.kind, op.inputs)

    def setDataFlow(self, data_flow: Any) -> None:
        """Take the number of transfers of a ``popart.DataFlow``."""
        self._program.num_host_transfers = data_flow.batchesPerStep()

    def setPatterns(self, patterns: Any) -> None:
        """The engine has its own passes: nothing to set."""

    def applyPreAliasPatterns(self, graph: Any) -> None:
        """The engine has its own passes: nothing to apply."""

    def applyInplacePattern(self, graph: Any) -> None:
        """The engine has its own passes: nothing to apply."""

    def updateVertices(self) -> None:
        """Nothing is cached."""

    def removeIsolatedTensors(self, *args: Any) -> None:
        """A session drops what no op uses."""

    def removeIsolatedGraphs(self) -> None:
        """A session drops what no op calls."""


class Graph:
    """``graph._pb_graph``."""

    def __init__(self, record: records.Graph) -> None:
        self._record = record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and other._record is self._record

    def __hash__(self) -> int:
        return id(self._record)

    @property
    def id(self) -> GraphId:
        """Graph id; has ``.str()``."""
        return GraphId(self._record.id)

    def getOps(self) -> list[Op]:
        """Ops in creation order; merged ones are one."""
        return [Op(op) for op in dict.fromkeys(map(_rewrite.listed, self._record.ops))]

    def getOpIds(self) -> list[int]:
        """Ids of the ops in creation order."""
        return [op.id for op in self.getOps()]

    def getOp(self, op_id: int) -> Op:
        """The op with this id; popart_exception if there is none."""
        first = _rewrite.find_ops(self._record, op_id)[0]
        return Op(first if first.opid == op_id else _rewrite.listed(first))

    def eraseOp(self, op_id: int) -> None:
        """Remove an op and its outputs; popart_exception if there is none with this id."""
        for op in _rewrite.find_ops(self._record, op_id):
            _rewrite.erase(op)

    def topoCons(self) -> _rewrite.TopoCons:
        """The constraints on the order of ops, of ``in_sequence`` among others."""
        return _rewrite.TopoCons(self._record)

    def __getattr__(self, name: str) -> Callable[..., Op]:
        """``createOp_<Class>(...)`` and ``createConnectedOp_<Class>(inputs, outputs, ...)``.

        Inputs and outputs are ids by index. Of the other arguments Settings and sub-graphs count:
        kinds with attributes of their own are made with the functions of ``popxl.ops``.
        """
        prefix, _, cls = name.partition("_")
        kind = next((k for k, known in Op._of_kind.items() if known.__name__ == cls), None)
        if kind is None or prefix not in ("createOp", "createConnectedOp"):
            raise AttributeError(f"Graph has no attribute {name!r}")
        graph = self._record

        def create(*args: Any, **kwargs: Any) -> Op:
            given = [*args, *kwargs.values()]
            if prefix == "createOp":
                return Op(_rewrite.new_op(graph, kind, given))
            return Op(_rewrite.connected_op(graph, kind, given[0], given[1], given[2:]))

        return create

    def getIr(self) -> Ir:
        """The owner."""
        return Ir(self._record.program)

    def getInputId(self, index: int) -> str:
        """Id of input ``index``."""
        return self._record.inputs[index].id

    def getOutputId(self, index: int) -> str:
        """Id of output ``index``."""
        return self._record.outputs[index].id

    def getInputIndex(self, tensor_id: str) -> int:
        """Index of the input with this id; ValueError if there is none."""
        return self.getInputIds().index(tensor_id)

    def getOutputIndex(self, tensor_id: str) -> int:
        """First index of the output with this id; ValueError if there is none."""
        return self.getOutputIds().index(tensor_id)

    def getInputTensor(self, index: int) -> Tensor:
        """Input ``index``."""
        return Tensor(self._record.inputs[index])

    def getOutputTensor(self, index: int) -> Tensor:
        """Output ``index``."""
        return Tensor(self._record.outputs[index])

    def markAsOutput(self, tensor_id: str) -> None:
        """One more output."""
        self._record.outputs.append(_rewrite.find_value(self._record, tensor_id))

    def removeOutput(self, index: int) -> None:
        """Unmark output ``index``."""
        del self._record.outputs[index]

    def getOpSchedule(self, *args: Any) -> list[Op]:
        """Ops in execution order, which is creation order; merged ones each, as they are run."""
        return [Op(op) for op in self._record.ops]

    def getTensors(self) -> list[Tensor]:
        """Every tensor."""
        return [Tensor(value) for value in self._record.values.values()]

    def getInputIds(self) -> list[str]:
        """Ids of the inputs."""
        return [value.id for value in self._record.inputs]

    def getOutputIds(self) -> list[str]:
        """Ids of the outputs."""
        return [value.id for value in self._record.outputs]

    def getTensor(self, tensor_id: str) -> Tensor:
        """The tensor with this id; popart_exception if there is none."""
        return Tensor(_rewrite.find_value(self._record, tensor_id))

    def getCalledGraphs(self) -> list[Graph]:
        """Graphs called by ops of this graph."""
        found = {graph.id: graph for op in self._record.ops for graph in op.graphs}
        return [Graph(graph) for graph in found.values()]

    def setCanBeRecursivelyAutodiffed(self, value: bool) -> None:
        """Whether autodiff of a caller may differentiate this graph anew."""
        self._record.recursive_autodiff = value


class Op:
    """``call_site_info._op`` and the elements of ``getOps()``.

    ``Op(record)`` is an instance of the class of the op's kind, see the module ``op``.
    """

    _of_kind: ClassVar[dict[str, type[Op]]] = {}

    def __new__(cls, record: records.Op) -> Op:
        """The class follows from the record."""
        return super().__new__(cls._of_kind.get(record.kind, Op))

    def __init__(self, record: records.Op) -> None:
        self._record = record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Op) and other._record is self._record

    def __hash__(self) -> int:
        return id(self._record)

    @property
    def id(self) -> int:
        """Op id; ids start at 100 and count every op of the Ir."""
        return self._record.opid

    def opType(self) -> str:
        """Kind, e.g. ``"MatMul"``."""
        return self._record.kind

    @property
    def opid(self) -> OperatorIdentifier:
        """Kind, domain and version."""
        return OperatorIdentifier("ai.graphcore", self.opType())

    def debugName(self) -> str:
        """Kind and id."""
        return f"Op({self.opType()}, {self._record.opid})"

    def getGraph(self) -> Graph:
        """The graph that holds the op."""
        return Graph(self._record.graph)

    def hasInput(self, index: int) -> bool:
        """Whether input ``index`` is connected."""
        inputs = self._record.inputs
        return 0 <= index < len(inputs) and inputs[index] is not None

    def inTensor(self, index: int) -> Tensor:
        """Input ``index``; IndexError if it is not connected."""
        value = self._record.inputs[index] if self.hasInput(index) else None
        if value is None:
            raise IndexError(f"{self.debugName()} has no input at index {index}")
        return Tensor(value)

    def outId(self, index: int) -> str:
        """Id of output ``index``; IndexError if there is none."""
        return self.outTensor(index).id

    def outTensor(self, index: int) -> Tensor:
        """Output ``index``; IndexError if there is none."""
        if not 0 <= index < len(self._record.outputs):
            raise IndexError(f"{self.debugName()} has no output at index {index}")
        return Tensor(self._record.outputs[index])

    def inIndex(self, tensor: Tensor) -> int:
        """First input index of a tensor; IndexError if it is no input."""
        for index, value in enumerate(self._record.inputs):
            if value is tensor._record:
                return index
        raise IndexError(f"{tensor.id} is no input of {self.debugName()}")

    def hasInputTensor(self, tensor: Tensor) -> bool:
        """Whether a tensor is an input."""
        return any(value is tensor._record for value in self._record.inputs)

    def getInputIndexMap(self) -> dict[int, Tensor]:
        """Connected inputs by index."""
        inputs = enumerate(self._record.inputs)
        return {index: Tensor(value) for index, value in inputs if value is not None}

    def getOutputIndexMap(self) -> dict[int, Tensor]:
        """Outputs by index."""
        return {index: Tensor(value) for index, value in enumerate(self._record.outputs)}

    def modifiesIndex(self, index: int) -> bool:
        """Whether the op writes its input ``index`` in place."""
        return opdef(self._record.kind).writes == index

    def isOptimizerOp(self) -> bool:
        """False: PopXL's ops are not made by an optimizer of PopART."""
        return False

    def getInputTensors(self) -> list[Tensor]:
        """Connected inputs in index order."""
        return [Tensor(value) for value in self._record.inputs if value is not None]

    def getOutputTensors(self) -> list[Tensor]:
        """Outputs in index order."""
        return [Tensor(value) for value in self._record.outputs]

    def getCalledGraphs(self) -> list[Graph]:
        """Sub-graphs of the op."""
        return [Graph(graph) for graph in self._record.graphs]

    def getSettings(self) -> Settings:
        """Name and placement."""
        return Settings.of(self._record)

    def connectInTensor(self, index: int, tensor_id: str) -> None:
        """Make a tensor of the op's graph its input ``index``."""
        _rewrite.connect_input(self._record, index, tensor_id)

    def createAndConnectOutTensor(self, index: int, tensor_id: str) -> None:
        """A new tensor as output ``index``, the next one; :meth:`setup` gives its shape."""
        _rewrite.create_output(self._record, index, tensor_id)

    def disconnectAllInputs(self) -> None:
        """Leave the op without inputs."""
        self._record.inputs.clear()

    def disconnectAllOutputs(self) -> None:
        """Leave the op without outputs; those that nothing uses are removed."""
        _rewrite.disconnect_outputs(self._record)

    def setup(self) -> None:
        """Shapes and dtypes of the outputs from the inputs; popart_exception if they do not fit."""
        _rewrite.set_up(self._record)

    def cloneIntoGraph(self, graph: Graph) -> Op:
        """The op again, unconnected, at the end of ``graph``."""
        return Op(_rewrite.clone(self._record, graph._record))

    @classmethod
    def of(cls, record: records.Op) -> Op:
        """The handle of another op."""
        return Op(record)

    def hasVirtualGraphId(self) -> bool:
        """Every op has a virtual IPU."""
        return True

    def getVirtualGraphId(self) -> int:
        """Virtual IPU."""
        return self._record.ipu


class Tensor:
    """``tensor._pb_tensor``."""

    def __init__(self, record: records.Value) -> None:
        self._record = record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tensor) and other._record is self._record

    def __hash__(self) -> int:
        return id(self._record)

    @property
    def id(self) -> str:
        """Full id."""
        return self._record.id

    @property
    def info(self) -> TensorInfo:
        """Shape and meta shape."""
        return TensorInfo._of(self._record.spec)

    def hasTensorData(self) -> bool:
        """Whether it is a variable or a constant."""
        return self._record.data is not None

    def hasVirtualGraphId(self) -> bool:
        """Whether its virtual IPU is known."""
        return self._record.ipu is not None

    def getVirtualGraphId(self) -> int:
        """Virtual IPU; popart_exception if unknown."""
        if self._record.ipu is None:
            raise popart_exception(f"The virtual IPU of {self._record.id} is not known")
        return self._record.ipu

    def getGraph(self) -> Graph:
        """The graph that holds the tensor."""
        return Graph(self._record.graph)

    def hasProducer(self) -> bool:
        """Whether an op made it."""
        return self._record.producer is not None

    def getProducer(self) -> Op:
        """The op that made it."""
        if self._record.producer is None:
            raise IndexError(f"{self._record.id} has no producer")
        return Op(self._record.producer)

    def tensor_type(self) -> TensorType:
        """What the tensor is."""
        return _TENSOR_TYPES.get(self._record.kind, TensorType.ActGrad)

    @property
    def tensorLocationInfo(self) -> LocationInfo:
        """Remote location of a variable."""
        return LocationInfo(self._record.data)

    @property
    def consumers(self) -> Consumers:
        """The ops of its graph that take the tensor."""
        return Consumers(self._record)

    def modifiedRegionsByOps(self, ops: Iterable[Op]) -> list[Region]:
        """All of the tensor, if one of ``ops`` has it as an input that it writes in place."""
        for op in ops:
            inputs = op.getInputIndexMap().items()
            if any(tensor == self and op.modifiesIndex(index) for index, tensor in inputs):
                return [Region.getFull(self.info.shape())]
        return []

    def isAliased(self) -> bool:
        """Whether an op makes an alias of the tensor, or made the tensor as one."""
        made = [] if self._record.producer is None else [self._record.producer]
        users = [op._record for op in self.consumers.getOps()]
        return any(opdef(op.kind).view for op in made + users)


class Consumers:
    """``tensor._pb_tensor.consumers``."""

    def __init__(self, record: records.Value) -> None:
        self._record = record

    def getOps(self) -> list[Op]:
        """The ops, in order."""
        return [Op(op) for op in self._record.graph.ops if self._record in op.inputs]

    def getTotal(self) -> int:
        """How often the tensor is an input."""
        return sum(op.inputs.count(self._record) for op in self._record.graph.ops)
