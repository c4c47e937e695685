"""Hints about exchanges between host, remote memory and device.

Numerically they do nothing: the engine orders transfers by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from popxl.context import get_current_context, in_sequence, io_tiles

if TYPE_CHECKING:
    from popxl_torch.ir.records import Op

_EXCHANGES = {"HostLoad", "HostStore", "RemoteLoad", "RemoteLoadInplace", "RemoteStore"}


@contextmanager
def merge_exchange() -> Iterator[None]:
    """Host and remote transfers created inside may be merged."""
    get_current_context()
    yield


@contextmanager
def io_tile_exchange(verify_overlap: bool = True) -> Iterator[None]:
    """``io_tiles()``, ``merge_exchange()`` and ``in_sequence(False)`` in one.

    Args:
        verify_overlap: check that the ops created inside merge into one exchange.

    Raises:
        RuntimeError: more than one op would be left, e.g. a store of what a load brought.
    """
    context = get_current_context()
    created: list[Op] = []

    def remember(op: Any) -> None:
        if op._record.kind != "Init" and op._record.graph is context.graph._record:
            created.append(op._record)

    handle = context.register_op_created_hook(remember)
    try:
        with io_tiles(), merge_exchange(), in_sequence(False):
            yield
    finally:
        context.remove_op_created_hook(handle)
    if verify_overlap and _left_after_merging(created) > 1:
        kinds = ", ".join(f"{op.kind} ({op.name})" for op in created)
        raise RuntimeError(
            "More than one Op remained after `io_tile_exchange`. They cannot overlap: " + kinds
        )


def _left_after_merging(ops: list[Op]) -> int:
    """Ops left if all transfers that depend on none of ``ops`` become one."""
    made = {id(value) for op in ops for value in op.outputs}
    merged = [
        op
        for op in ops
        if op.kind in _EXCHANGES and not any(id(value) in made for value in op.inputs)
    ]
    return len(ops) - len(merged) + bool(merged)
