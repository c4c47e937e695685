"""Records and enums that low-level handles take and give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from popart._internal.ir._locations import ExecutionContext, TileSet
from popart._types import DataType
from popxl_torch.ir.records import Spec

if TYPE_CHECKING:
    from popxl_torch.ir import records

_LONG_NAMES = {"float32": "FLOAT", "float64": "DOUBLE"}
_TILE_SETS = {TileSet.Compute: "compute", TileSet.IO: "io"}


def data_type(name: str) -> DataType:
    """PopART's member for a dtype's name."""
    return DataType[_LONG_NAMES.get(name, name.upper())]


class GraphId(str):
    """A graph id with PopART's ``str()`` method."""

    __slots__ = ()

    def str(self) -> Any:
        """The plain text."""
        return "".join(self)


@dataclass(frozen=True)
class NumInputs:
    """Least and greatest number of inputs of an op."""

    min: int = 0
    max: int = 0


@dataclass(frozen=True)
class OperatorIdentifier:
    """``op.opid``."""

    domain: str
    type: str
    version: int = 1
    numInputs: NumInputs = field(default_factory=NumInputs)
    numOutputs: int = 0


class TensorInfo:
    """Data type, shape and meta shape of a tensor."""

    def __init__(
        self, data_type: DataType | str, shape: Iterable[int], meta_shape: Iterable[int] = ()
    ) -> None:
        """``data_type``: a member of ``DataType`` or its name."""
        self._data_type = DataType[data_type] if isinstance(data_type, str) else data_type
        self._shape, self._meta_shape = tuple(shape), tuple(meta_shape)

    @classmethod
    def _of(cls, spec: Spec) -> TensorInfo:
        return cls(data_type(spec.dtype), spec.shape, spec.meta_shape)

    def dataType(self) -> DataType:
        """Element type."""
        return self._data_type

    def shape(self) -> list[int]:
        """Shape."""
        return list(self._shape)

    def metaShape(self) -> list[int]:
        """Meta shape."""
        return list(self._meta_shape)

    def rank(self) -> int:
        """Number of axes."""
        return len(self._shape)

    def nelms(self) -> int:
        """Number of elements."""
        return Spec(self._shape, "").nelms

    def _key(self) -> tuple[Any, ...]:
        return self._data_type, self._shape, self._meta_shape

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorInfo) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


class TensorType(Enum):
    """What a tensor is."""

    ActGrad = 0
    Const = auto()
    Stream = auto()
    Unknown = auto()
    Variable = auto()


class LocationInfo:
    """``tensor.tensorLocationInfo``: where a variable lives."""

    def __init__(self, data: records.VariableData | Any) -> None:
        self._data = data
        self._buffer = getattr(data, "buffer", None)

    def isRemote(self) -> bool:
        """Whether the tensor lives in a remote buffer."""
        return self._buffer is not None

    def isSharded(self) -> bool:
        """Whether replicas hold shards."""
        return getattr(self._data, "shard_over", 1) > 1

    def getRemoteBufferInfo(self) -> tuple[int, int]:
        """(buffer id, entry) of a remote variable."""
        assert self._buffer is not None
        return self._buffer.id, self._data.entry


@dataclass
class Settings:
    """Name and placement of an op that is about to be made."""

    graph: Any = None
    name: str = ""
    scopes: tuple[str, ...] = ()
    vgraphId: int = 0
    tileSet: TileSet = TileSet.Compute
    executionContext: ExecutionContext = ExecutionContext.Normal
    location: str = ""

    @classmethod
    def of(cls, op: records.Op) -> Settings:
        """The settings of an op."""
        tiles = TileSet.IO if op.tile_set == "io" else TileSet.Compute
        context = ExecutionContext[op.context]
        return cls(op.graph, op.name, op.scopes, op.ipu, tiles, context, op.location)

    def fields(self) -> dict[str, Any]:
        """The same as fields of an op's record."""
        return {
            "name": self.name,
            "scopes": self.scopes,
            "ipu": self.vgraphId,
            "tile_set": _TILE_SETS[self.tileSet],
            "context": self.executionContext.name,
            "location": self.location,
        }


@dataclass(frozen=True)
class Region:
    """A box of elements: ``lower`` to ``upper`` on each axis."""

    lower: tuple[int, ...]
    upper: tuple[int, ...]
    empty: bool = False

    @classmethod
    def getFull(cls, shape: Iterable[int]) -> Region:
        """All elements of a shape."""
        upper = tuple(shape)
        return cls((0,) * len(upper), upper)

    @classmethod
    def getEmpty(cls, rank: int) -> Region:
        """No element."""
        return cls((0,) * rank, (0,) * rank, True)

    def isEmpty(self) -> bool:
        """Whether there is no element."""
        return self.empty or self.nelms() == 0

    def nelms(self) -> int:
        """Number of elements."""
        sizes = tuple(b - a for a, b in zip(self.lower, self.upper, strict=True))
        return 0 if self.empty else Spec(sizes, "").nelms

    def rank(self) -> int:
        """Number of axes."""
        return len(self.lower)


class ExpectedConnectionType(Enum):
    """Whether a gradient graph's input or output is a forward tensor or a gradient of one."""

    Fwd = 0
    FwdGrad = 1


@dataclass(frozen=True)
class ExpectedConnection:
    """What an input or output of a gradient graph stands for."""

    fwdId: str
    type: ExpectedConnectionType


@dataclass
class BwdGraphInfo:
    """A gradient graph and what its inputs and outputs stand for."""

    bwdGraphId: GraphId
    expectedInputs: list[ExpectedConnection]
    expectedOutputs: list[ExpectedConnection]


class PatternsLevel(Enum):
    """How many of PopART's graph rewrites are on."""

    NoPatterns = 0
    Minimal = auto()
    Default = auto()
    All = auto()


class Patterns:
    """A choice of PopART's graph rewrites. The engine has its own passes: recorded only."""

    def __init__(self, level: PatternsLevel | Mapping[str, bool] = PatternsLevel.Default) -> None:
        """``level``, or single patterns by name."""
        self.level = level if isinstance(level, PatternsLevel) else PatternsLevel.NoPatterns
        self._settings = {} if isinstance(level, PatternsLevel) else dict(level)

    def enablePattern(self, name: str, value: bool) -> Patterns:
        """Switch one pattern."""
        self._settings[name] = value
        return self

    def isPatternEnabled(self, name: str) -> bool:
        """Whether a pattern is on."""
        return self._settings.get(name, self.level is not PatternsLevel.NoPatterns)

    def enableRuntimeAsserts(self, value: bool) -> Patterns:
        """Whether unknown combinations would be refused."""
        return self
