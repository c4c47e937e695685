"""The build context: which graph, IPU, name scope and ordering new ops get.

One context per process. Ops are executed in the order in which they were created, which refines
every order that PopXL guarantees; what ``in_sequence`` asks for is recorded with the graphs, so
that a session can tell which order a program left open.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from popart._internal import ir as _ir
from popart._internal.ir import ExecutionContext, TileSet

if TYPE_CHECKING:
    from popxl.graph import Graph
    from popxl.ir import Ir
    from popxl_torch.ir.records import Op

Fn = TypeVar("Fn", bound=Callable[..., Any])
InSequenceKey = tuple[str, str]

_IN_SEQUENCE_MODES = (None, True, False)
_FRONT_END = ("popxl", "popxl_addons", "functools", "contextlib", "popxl_torch")


class Context:
    """State of the builder. Programs reach it through the functions of this module."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._graphs: list[Graph] = []
        self._ipu_id = 0
        self._io_tiles = False
        self._name_scopes: list[str] = []
        self._in_sequence: bool | Literal["pass"] | None = None
        # By graph and fragment: ops that the next one follows, and the unordered group since.
        self._previous: dict[tuple[Any, str], tuple[set[Op], set[Op]]] = {}
        self._execution = ExecutionContext.Normal
        self._hooks: dict[int, Callable[[Any], Any]] = {}
        self._handles = itertools.count()

    @property
    def graph(self) -> Graph:
        """The graph that new ops are added to; RuntimeError if none is active."""
        if not self._graphs:
            raise RuntimeError("There is no graph in the current context. Enter one with `with`.")
        return self._graphs[-1]

    @property
    def main_graph(self) -> Graph:
        """Main graph of the bottom graph's Ir."""
        return self.ir.main_graph

    @property
    def ir(self) -> Ir:
        """Ir of the bottom graph."""
        if not self._graphs:
            raise RuntimeError("There is no graph in the current context. Enter one with `with`.")
        return self._graphs[0].ir

    @property
    def ipu_id(self) -> int | None:
        """Virtual IPU of new ops."""
        return self._ipu_id

    @property
    def io_tile_set(self) -> bool:
        """Whether new ops are placed on IO tiles."""
        return self._io_tiles

    @property
    def name_scopes(self) -> list[str]:
        """A copy of the active name scopes, outermost first."""
        return list(self._name_scopes)

    @property
    def in_sequence(self) -> bool | Literal["pass"] | None:
        """Ordering mode of new ops."""
        return self._in_sequence

    @in_sequence.setter
    def in_sequence(self, value: bool | Literal["pass"] | None) -> None:
        self._in_sequence = value

    def push_graph(self, g: Graph) -> None:
        """Make ``g`` current; RuntimeError if it belongs to another Ir."""
        if self._graphs and g.ir != self._graphs[0].ir:
            raise RuntimeError("A graph of another Ir is active in the current context.")
        self._graphs.append(g)

    def pop_graph(self) -> Graph:
        """Leave the current graph and return it."""
        return self._graphs.pop()

    def push_name_scope(self, name: str) -> None:
        """Enter a name scope."""
        self._name_scopes.append(name)

    def pop_name_scope(self) -> str:
        """Leave the innermost name scope and return it."""
        return self._name_scopes.pop()

    def register_op_created_hook(self, fn: Callable[[Any], Any]) -> int:
        """Call ``fn(op)`` for every op created in any graph; returns a handle."""
        handle = next(self._handles)
        self._hooks[handle] = fn
        return handle

    def remove_op_created_hook(self, handle: int) -> None:
        """Undo :meth:`register_op_created_hook`."""
        del self._hooks[handle]

    def _get_op_settings(self, name: str) -> _ir.Settings:
        """Placement and names of an op that is about to be created."""
        if self._in_sequence not in _IN_SEQUENCE_MODES:
            raise ValueError(f"Not a valid in_sequence mode: {self._in_sequence!r}")
        return _ir.Settings(
            self.graph._record,
            "/".join([*self._name_scopes, name]),
            tuple(self._name_scopes),
            self._ipu_id,
            TileSet.IO if self._io_tiles else TileSet.Compute,
            self._execution,
            get_source_location(2),
        )

    def _op_created(self, op: _ir.Op) -> None:
        """What follows an op; programs that add ops of their own call it."""
        graph = op._record.graph
        self._follow(op._record, graph.program.frontend._graph(graph))

    def _follow(self, op: Op, graph: Graph) -> None:
        """Order a new op after the previous ones of its graph and run the hooks for it."""
        if self._in_sequence is not None:
            self._order(op)
        for hook in [*self._hooks.values(), *graph._hooks.values()]:
            hook(_ir.Op(op))

    def _order(self, op: Op) -> None:
        """Put a new op after the last one of its graph and fragment, or into the group there."""
        key = (op.graph, op.context)
        last, group = self._previous.get(key, (set(), set()))
        if self._in_sequence:
            op.graph.befores[op] = set(group or last)
            self._previous[key] = ({op}, set())
        else:
            op.graph.befores[op] = set(last)
            self._previous[key] = (last, group | {op})


_CONTEXT = Context()


def get_current_context() -> Context:
    """The context of this process."""
    return _CONTEXT


def get_current_graph() -> Graph:
    """The graph on top of the stack; RuntimeError if none is active."""
    return _CONTEXT.graph


def get_main_graph() -> Graph:
    """The main graph of the active Ir."""
    return _CONTEXT.main_graph


def get_ir() -> Ir:
    """The active Ir."""
    return _CONTEXT.ir


gcg = get_current_graph
gmg = get_main_graph
gir = get_ir


@contextmanager
def ipu(ipu: int) -> Iterator[int]:
    """Place ops on virtual IPU ``ipu``. (quirk) Not restored when the body raises."""
    before = _CONTEXT._ipu_id
    _CONTEXT._ipu_id = ipu
    yield ipu
    _CONTEXT._ipu_id = before


@contextmanager
def in_sequence(mode: bool | Literal["pass"] = True) -> Iterator[bool | str]:
    """Order ops as they are created. (quirk) Not restored when the body raises.

    Args:
        mode: True: each op comes after the previous one of its graph. False: the ops created inside
            have no order among each other. "pass": no order inside; (quirk) ops after the block are
            not ordered after ops before it either.

    Raises:
        TypeError: ``mode`` is None.
        ValueError: when the next op is created, for any other mode.
    """
    if mode is None:
        raise TypeError("in_sequence's mode must be True, False or 'pass', not None.")
    before = _CONTEXT._in_sequence
    if mode == "pass":
        _CONTEXT._previous.clear()
    _CONTEXT._in_sequence = None if mode == "pass" else mode
    yield mode
    _CONTEXT._in_sequence = before
    if before is None:
        _CONTEXT._previous.clear()


@contextmanager
def io_tiles() -> Iterator[None]:
    """Place ops on IO tiles. Recorded only. (quirk) Not restored when the body raises."""
    before = _CONTEXT._io_tiles
    _CONTEXT._io_tiles = True
    yield
    _CONTEXT._io_tiles = before


@contextmanager
def name_scope(name: str) -> Iterator[list[str]]:
    """Prefix names with ``name/``. (quirk) Not restored when the body raises."""
    _CONTEXT.push_name_scope(name)
    yield _CONTEXT.name_scopes
    _CONTEXT.pop_name_scope()


@contextmanager
def _execution_context(execution_context: ExecutionContext) -> Iterator[ExecutionContext]:
    """Put ops into another program fragment, e.g. the one that runs when weights are sent."""
    before = _CONTEXT._execution
    _CONTEXT._execution = execution_context
    yield execution_context
    _CONTEXT._execution = before


@contextmanager
def debug_context_frame_offset(i: int) -> Iterator[int]:
    """Debug information of the SDK; creation lines are found without it."""
    yield i


def get_source_location(offset: int) -> str:
    """``file:line`` of the innermost caller outside the front end."""
    frame = sys._getframe(min(offset, 1))
    while frame.f_back is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in _FRONT_END:
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def op_debug_context(name: Any) -> Any:
    """Decorator of op functions: debug information of the SDK; passes everything through."""
    if not callable(name):
        return lambda fn: op_debug_context(fn)

    @functools.wraps(name)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return name(*args, **kwargs)

    return wrapper
