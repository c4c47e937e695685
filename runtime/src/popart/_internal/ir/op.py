"""The classes of ops by the names that PopART gives them: ``AddOp``, ``exchange.HostLoadOp``, ...

An op handle is an instance of the class of its kind; kinds without a class are plain ``Op``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from popart._internal.ir import _rewrite
from popart._internal.ir._handles import Graph, Op
from popart._internal.ir._records import data_type
from popart._types import DataType

# Classes that are not called after their kind and "Op".
_EXCEPTIONS = {
    "BatchNormalization": "BatchNormOp",
    "GroupNormalization": "GroupNormOp",
    "IsInf": "IsInf",
    "IsNaN": "IsNaN",
    "Neg": "NegateOp",
    "OneHot": "OnehotOp",
    "PopartSparseAccumulate": "SparseAccumulateOp",
    "PopartTiedGather": "TiedGatherOp",
    "Sub": "SubtractOp",
}
_KINDS = """
    Abs Accumulate AccumulatorScale AdamUpdater AdamVarUpdate Add AddLhsInplace And ArgMax ArgMin
    AveragePool BatchNormalization Call Cast CastThenPow2Scale Ceil Clip Concat ConcatInplace Conv
    ConvTranspose CopyVarUpdate Cos CumSum Detach DetachInplace Div Dropout Equal Exp ExpInplace
    Floor Fmod Gather Gelu GeluErf GeluErfInplace GeluInplace Greater GroupNormalization Histogram
    Identity If IncrementMod IncrementModInplace Init IoTileCopy IpuCopy IsInf IsNaN LambSquare Log
    Loop MatMul Max MaxPool ModifyRandomSeed Mul Neg Nll NlllWithSoftmaxGradDirect Not OneHot Or
    PopartSparseAccumulate PopartTiedGather Pow Pow2ScaleThenCast PrintTensor RandomNormal
    RandomUniform ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMedian
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu ReluInplace Reshape ReshapeInplace Resize
    RoiAlign ScaledAdd ScaledAddLhsInplace Scatter ScatterReduce ShapedDropout Sign Sin Slice
    SliceInplace Softmax Split Sqrt Sub Subsample Sum Swish SwishInplace Tanh TopK Transpose
    TransposeInplace Where
"""
_NAMESPACES = {
    "collectives": """
        AllReduce ReplicatedAllGather ReplicatedAllReduce ReplicatedAllReduceInplace
        ReplicatedReduceScatter
    """,
    "dynamic": "DynamicSlice DynamicUpdate DynamicUpdateInplace",
    "exchange": """
        HostLoad HostStore MultiExchange RemoteCodeLoad RemoteLoad RemoteLoadInplace RemoteStore
    """,
}


class _CallingOp(Op):
    """An op with one sub-graph, whose inputs are the op's from ``_first`` on."""

    _first = 0

    def getCalledGraph(self) -> Graph:
        """The sub-graph."""
        return Graph(self._record.graphs[0])

    def modifiesIndex(self, index: int) -> bool:
        """Whether the sub-graph's writes to input ``index`` reach the caller."""
        return index - self._first in self._record.attrs["modified"]

    def addModified(self, index: int, regions: Any) -> None:
        """Let the sub-graph's writes to input ``index`` reach the caller."""
        self._record.attrs["modified"].add(index - self._first)

    def opInToSubgraphInIndex(self, subgraph: int, index: int) -> int:
        """Sub-graph input of op input ``index``: the same, loops included."""
        return index

    def subgraphInToOpInIndex(self, subgraph: int, index: int) -> int:
        """Op input of sub-graph input ``index``: the same, loops included."""
        return index


class _LoopOp(_CallingOp):
    _first = 2

    def getTripCountValue(self) -> int:
        """Number of iterations."""
        return self._record.attrs["count"]

    def setTripCountValue(self, count: int) -> None:
        """Set the number of iterations."""
        self._record.attrs["count"] = count

    def addLoopInput(
        self, index: int, tensor_id: str, subgraph_tensor_id: str, overwrite: bool = False
    ) -> None:
        """A tensor as input ``index`` of the loop, and a new input of the sub-graph for it."""
        _rewrite.add_loop_input(self._record, index, tensor_id, subgraph_tensor_id, overwrite)

    def addLoopOutput(
        self, index: int, tensor_id: str, subgraph_tensor_id: str, overwrite: bool = False
    ) -> None:
        """A new output ``index``, the next one: what a tensor of the sub-graph is at the end."""
        self.createAndConnectOutTensor(index, tensor_id)
        self.getCalledGraph().markAsOutput(subgraph_tensor_id)
        self.setup()

    def getNumExplicitInputs(self) -> int:
        """Inputs that an iteration passes to the next one."""
        return len(self._record.outputs)


class _AxisOp(Op):
    def getAxis(self) -> int:
        """The axis, counted from the front."""
        return self._record.attrs["axis"]


class _FactorOp(Op):
    def getFactor(self) -> Any:
        """The factor as ``getFactor().val()``."""
        number = self._record.attrs["factor"]
        return SimpleNamespace(val=lambda: number)


class _IpuCopyOp(Op):
    def getSourceIpu(self) -> int:
        """Virtual IPU of the input."""
        return self._record.attrs["source"]


class _MultiExchangeOp(Op):
    def modifiesIndex(self, index: int) -> bool:
        """Whether one of the merged transfers writes input ``index`` in place."""
        return index in self._record.attrs["writes"]


class _ReduceScatterOp(Op):
    def opType(self) -> str:
        """PopART's kind, which slices by replica have as well: they scatter what nobody reduced."""
        return "ReplicatedReduceScatter"


class _MatMulOp(Op):
    def getPartialsType(self) -> DataType:
        """Type of partial sums that the program asks for."""
        return data_type(self._record.attrs["partials"])

    def getAvailableMemoryProportion(self) -> float | None:
        """The hint for IPUs that was set."""
        return self._record.hints.get("available_memory_proportion")

    def setAvailableMemoryProportion(self, proportion: float) -> None:
        """Keep a hint for IPUs."""
        self._record.hints["available_memory_proportion"] = proportion

    def useFullyConnectedPass(self) -> bool:
        """Whether an IPU may keep transposed weights."""
        return self._record.hints.get("fully_connected_pass", True)

    def setUseFullyConnectedPass(self, value: bool) -> None:
        """Keep a hint for IPUs."""
        self._record.hints["fully_connected_pass"] = value


@dataclass
class ConvOptions:
    """Hints for IPUs."""

    availableMemoryProportions: list[float] = field(default_factory=list)
    partialsTypes: list[str] = field(default_factory=list)
    enableConvDithering: list[int] = field(default_factory=list)


class _ConvOp(Op):
    def getConvOptions(self) -> ConvOptions:
        """Hints for IPUs."""
        return self._record.hints.get("conv_options") or ConvOptions()

    def setConvOptions(self, options: ConvOptions) -> None:
        """Keep hints for IPUs."""
        self._record.hints["conv_options"] = options


_BASES: dict[str, type[Op]] = {
    "Call": _CallingOp,
    "Loop": _LoopOp,
    "IpuCopy": _IpuCopyOp,
    "MatMul": _MatMulOp,
    "MultiExchange": _MultiExchangeOp,
    "ReplicatedReduceScatter": _ReduceScatterOp,
    **dict.fromkeys(("Conv", "ConvTranspose"), _ConvOp),
    **dict.fromkeys(("Accumulate", "AccumulatorScale", "PopartSparseAccumulate"), _FactorOp),
    **dict.fromkeys(("Concat", "ConcatInplace", "CumSum", "Gather", "Softmax"), _AxisOp),
}


def _classes(kinds: str) -> dict[str, type[Op]]:
    """A class for each kind, by name, which handles of that kind get."""
    found: dict[str, type[Op]] = {}
    for kind in kinds.split():
        name = _EXCEPTIONS.get(kind, f"{kind}Op")
        members = {"__doc__": f"An op of kind {kind}.", "__module__": __name__}
        found[name] = Op._of_kind[kind] = type(name, (_BASES.get(kind, Op),), members)
    return found


_CLASSES = _classes(_KINDS)
collectives, dynamic, exchange = (
    SimpleNamespace(**_classes(kinds)) for kinds in _NAMESPACES.values()
)

Op._of_kind["ReplicatedSlice"] = collectives.ReplicatedReduceScatterOp


def __getattr__(name: str) -> type[Op]:
    """The class of this name; AttributeError if there is none."""
    if name not in _CLASSES:
        raise AttributeError(f"popart._internal.ir.op has no class {name!r}")
    return _CLASSES[name]
