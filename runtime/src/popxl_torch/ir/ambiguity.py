"""Pairs of ops whose order matters, though the program left it open.

Ops run in creation order, so such a program has a result here. Under the SDK it has not: there the
session refuses it, and so does this check.
"""

from __future__ import annotations

from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import opdef
from popxl_torch.ir.records import Graph, Op, Program, Value

# Memory that a value shares: the tensors it is a view of, and the slice through which it is one.
_Place = tuple[frozenset[Value], Op | None]


def check_order(program: Program) -> None:
    """Every write in place must be ordered with every other use of the memory it writes, by the
    flow of data or by ``in_sequence``.

    Two uses through different slices are taken to be apart.

    Raises:
        popart_exception: a pair of ops has no order.
    """
    for graph in program.graphs.values():
        uses = _uses_of_written_memory(graph)
        if uses:
            _check_uses(graph, uses)


def _written(op: Op) -> set[int]:
    """Inputs that an op changes."""
    if "modified" in op.attrs:
        first = 2 if op.kind == "Loop" else 0
        return {first + index for index in op.attrs["modified"]}
    writes = opdef(op.kind).writes
    return set() if writes is None else {writes}


def _uses_of_written_memory(graph: Graph) -> dict[Value, list[tuple[Op, Op | None, bool]]]:
    """By memory that some op writes: the ops that use it, the slice that each goes through, and
    whether it writes."""
    places: dict[Value, _Place] = {}
    uses: dict[Value, list[tuple[Op, Op | None, bool]]] = {}
    for op in graph.ops:
        facts, written = opdef(op.kind), _written(op)
        for index, value in enumerate(op.inputs):
            if value is None or facts.view:
                continue
            roots, cut = places.get(value, (frozenset((value,)), None))
            for root in roots:
                uses.setdefault(root, []).append((op, cut, index in written))
        if facts.view:
            places[op.outputs[0]] = _viewed(op, places)
        elif facts.writes is not None:
            target = op.inputs[facts.writes]
            assert target is not None
            places[op.outputs[0]] = places.get(target, (frozenset((target,)), None))
    return {root: found for root, found in uses.items() if any(writes for *_, writes in found)}


def _viewed(op: Op, places: dict[Value, _Place]) -> _Place:
    found = [places.get(v, (frozenset((v,)), None)) for v in op.inputs if v is not None]
    cut = op if op.kind == "SliceInplace" else next((c for _, c in found if c is not None), None)
    return frozenset().union(*(roots for roots, _ in found)), cut


def _check_uses(graph: Graph, uses: dict[Value, list[tuple[Op, Op | None, bool]]]) -> None:
    """Compare the uses of each memory pair by pair."""
    number: dict[Op, int] = {}
    for found in uses.values():
        for op, *_ in found:
            number.setdefault(op, len(number))
    earlier = _earlier(graph, number)
    for root, found in uses.items():
        for at, (op, cut, writes) in enumerate(found):
            for other, other_cut, other_writes in found[:at]:
                if op is other or not (writes or other_writes) or op.context != other.context:
                    continue
                apart = cut is not None and other_cut is not None and cut is not other_cut
                if not apart and not earlier[op] >> number[other] & 1:
                    raise popart_exception(
                        f"Inplacing ambiguity detected. Of these ops, which use the memory of"
                        f" {root}, one writes it, and the program does not order them:\n"
                        f"  {other.where()}\n  {op.where()}\n"
                        "Build them inside popxl.in_sequence(), or use the result of the first in"
                        " the second."
                    )


def _earlier(graph: Graph, number: dict[Op, int]) -> dict[Op, int]:
    """For each op: which of the numbered ops must run before it, as bits."""
    found: dict[Op, int] = {}
    for op in graph.ops:
        bits = 0
        made = (value.producer for value in op.inputs if value is not None)
        for before in (*made, *graph.befores.get(op, ())):
            if before is not None and before in found:
                bits |= found[before]
                if before in number:
                    bits |= 1 << number[before]
        found[op] = bits
    return found
