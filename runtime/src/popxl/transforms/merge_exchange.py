"""Exchanges between host, remote memory and device that are listed as one op.

Numerically this does nothing: the engine makes each transfer where the program made it. The op
listing shows what PopXL would have merged as one op of kind ``MultiExchange``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from popart._internal import ir as _ir
from popxl.context import get_current_context, in_sequence, io_tiles

if TYPE_CHECKING:
    from popxl_torch.ir.records import Op, Value

_EXCHANGES = {"HostLoad", "HostStore", "RemoteLoad", "RemoteLoadInplace", "RemoteStore"}


@contextmanager
def _created_inside() -> Iterator[list[Op]]:
    """Ops created in the block, whatever their graph."""
    context = get_current_context()
    created: list[Op] = []

    def remember(op: Any) -> None:
        created.append(op._record)

    handle = context.register_op_created_hook(remember)
    try:
        yield created
    finally:
        context.remove_op_created_hook(handle)


@contextmanager
def merge_exchange() -> Iterator[None]:
    """Host and remote transfers created inside that need none of one another become one op.

    Transfers that need others' results come together in further ones.
    """
    with _created_inside() as created:
        yield
    for group in _groups(created):
        if len(group) > 1:
            _ir.list_as_one(group, "MultiExchange")


@contextmanager
def io_tile_exchange(verify_overlap: bool = True) -> Iterator[None]:
    """``io_tiles()``, ``merge_exchange()`` and ``in_sequence(False)`` in one.

    Args:
        verify_overlap: check that the ops created inside merge into one exchange.

    Raises:
        RuntimeError: more than one op would be left, e.g. a store of what a load brought.
    """
    here = get_current_context().graph._record
    with _created_inside() as created, io_tiles(), merge_exchange(), in_sequence(False):
        yield
    inside = [op for op in created if op.graph is here and op.kind != "Init"]
    merged = [group for group in _groups(inside) if len(group) > 1]
    left = len(inside) - sum(len(group) - 1 for group in merged)
    if verify_overlap and left > 1:
        kinds = ", ".join(f"{op.kind} ({op.name})" for op in inside)
        raise RuntimeError(
            "More than one Op remained after `io_tile_exchange`. They cannot overlap: " + kinds
        )


def _groups(created: list[Op]) -> list[list[Op]]:
    """The exchanges among ``created``: of one graph, and as many exchanges away from its start."""
    steps: dict[Value, int] = {}
    groups: dict[tuple[int, int], list[Op]] = {}
    for op in created:
        step = max((steps.get(value, 0) for value in op.inputs if value is not None), default=0)
        is_exchange = op.kind in _EXCHANGES
        if is_exchange:
            groups.setdefault((id(op.graph), step), []).append(op)
        steps.update(dict.fromkeys(op.outputs, step + is_exchange))
    return list(groups.values())
