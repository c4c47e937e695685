"""Thin views of IR records behind the ``_pb_*`` attributes that programs and addons read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from popxl_torch.ir import records


class GraphId(str):
    """A graph id with PopART's ``str()`` method."""

    __slots__ = ()

    def str(self) -> Any:
        """The plain text."""
        return "".join(self)


class IrHandle:
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

    def getAllGraphs(self) -> list[GraphHandle]:
        """Every graph."""
        return [GraphHandle(graph) for graph in self._program.graphs.values()]

    def getMainGraph(self) -> GraphHandle:
        """The main graph."""
        return GraphHandle(self._program.main)

    def getGraph(self, graph_id: str) -> GraphHandle:
        """The graph with this id."""
        return GraphHandle(self._program.graphs[str(graph_id)])


class GraphHandle:
    """``graph._pb_graph``."""

    def __init__(self, record: records.Graph) -> None:
        self._record = record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GraphHandle) and other._record is self._record

    def __hash__(self) -> int:
        return id(self._record)

    @property
    def id(self) -> GraphId:
        """Graph id; has ``.str()``."""
        return GraphId(self._record.id)

    def getOps(self) -> list[OpHandle]:
        """Ops in creation order."""
        return [OpHandle(op) for op in self._record.ops]

    def getOpSchedule(self, *args: Any) -> list[OpHandle]:
        """Ops in execution order, which is creation order."""
        return self.getOps()

    def getTensors(self) -> list[TensorHandle]:
        """Every tensor."""
        return [TensorHandle(value) for value in self._record.values.values()]

    def getInputIds(self) -> list[str]:
        """Ids of the inputs."""
        return [value.id for value in self._record.inputs]

    def getOutputIds(self) -> list[str]:
        """Ids of the outputs."""
        return [value.id for value in self._record.outputs]

    def getTensor(self, tensor_id: str) -> TensorHandle:
        """The tensor with this id."""
        return TensorHandle(self._record.values[tensor_id])

    def getCalledGraphs(self) -> list[GraphHandle]:
        """Graphs called by ops of this graph."""
        found = {graph.id: graph for op in self._record.ops for graph in op.graphs}
        return [GraphHandle(graph) for graph in found.values()]

    def setCanBeRecursivelyAutodiffed(self, value: bool) -> None:
        """Whether autodiff of a caller may differentiate this graph anew."""
        self._record.recursive_autodiff = value


class OpHandle:
    """``call_site_info._op`` and the elements of ``getOps()``."""

    def __init__(self, record: records.Op) -> None:
        self._record = record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpHandle) and other._record is self._record

    def __hash__(self) -> int:
        return id(self._record)

    @property
    def id(self) -> int:
        """Op id; ids start at 100 and count every op of the Ir."""
        return self._record.opid

    def opType(self) -> str:
        """Kind, e.g. ``"MatMul"``."""
        return self._record.kind

    def debugName(self) -> str:
        """Kind and id."""
        return f"Op({self._record.kind}, {self._record.opid})"

    def getGraph(self) -> GraphHandle:
        """The graph that holds the op."""
        return GraphHandle(self._record.graph)

    def hasInput(self, index: int) -> bool:
        """Whether input ``index`` is connected."""
        inputs = self._record.inputs
        return 0 <= index < len(inputs) and inputs[index] is not None

    def inTensor(self, index: int) -> TensorHandle:
        """Input ``index``; IndexError if it is not connected."""
        value = self._record.inputs[index] if self.hasInput(index) else None
        if value is None:
            raise IndexError(f"{self.debugName()} has no input at index {index}")
        return TensorHandle(value)

    def outTensor(self, index: int) -> TensorHandle:
        """Output ``index``; IndexError if there is none."""
        if not 0 <= index < len(self._record.outputs):
            raise IndexError(f"{self.debugName()} has no output at index {index}")
        return TensorHandle(self._record.outputs[index])

    def getInputTensors(self) -> list[TensorHandle]:
        """Connected inputs in index order."""
        return [TensorHandle(value) for value in self._record.inputs if value is not None]

    def getOutputTensors(self) -> list[TensorHandle]:
        """Outputs in index order."""
        return [TensorHandle(value) for value in self._record.outputs]

    def getCalledGraphs(self) -> list[GraphHandle]:
        """Sub-graphs of the op."""
        return [GraphHandle(graph) for graph in self._record.graphs]

    def getCalledGraph(self) -> GraphHandle:
        """The only sub-graph."""
        return GraphHandle(self._record.graphs[0])

    def getTripCountValue(self) -> int:
        """Iterations of a loop."""
        return self._record.attrs["count"]

    def getVirtualGraphId(self) -> int:
        """Virtual IPU."""
        return self._record.ipu


class _Info:
    """``tensor._pb_tensor.info``."""

    def __init__(self, spec: records.Spec) -> None:
        self._spec = spec

    def shape(self) -> list[int]:
        """Shape."""
        return list(self._spec.shape)

    def metaShape(self) -> list[int]:
        """Meta shape."""
        return list(self._spec.meta_shape)

    def rank(self) -> int:
        """Number of axes."""
        return len(self._spec.shape)

    def nelms(self) -> int:
        """Number of elements."""
        return self._spec.nelms


class TensorHandle:
    """``tensor._pb_tensor``."""

    def __init__(self, record: records.Value) -> None:
        self._record = record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorHandle) and other._record is self._record

    def __hash__(self) -> int:
        return id(self._record)

    @property
    def id(self) -> str:
        """Full id."""
        return self._record.id

    @property
    def info(self) -> _Info:
        """Shape and meta shape."""
        return _Info(self._record.spec)

    def getGraph(self) -> GraphHandle:
        """The graph that holds the tensor."""
        return GraphHandle(self._record.graph)

    def hasProducer(self) -> bool:
        """Whether an op made it."""
        return self._record.producer is not None

    def getProducer(self) -> OpHandle:
        """The op that made it."""
        if self._record.producer is None:
            raise IndexError(f"{self._record.id} has no producer")
        return OpHandle(self._record.producer)
