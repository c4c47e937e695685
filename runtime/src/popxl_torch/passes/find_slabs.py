"""What a program loads together: loads that follow each other with one offset.

Buffers that are loaded together in one place of the program are counted together in all. Buffers
of which rows are gathered and nothing else is used are told apart: rows are read where they are.
Buffers that the program stores to are found apart, those together that one block stores to at one
offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from popxl_torch.ir.records import Buffer
from popxl_torch.passes.ssa import Block, Functional, Node, walk


@dataclass(frozen=True, slots=True)
class LoadedTogether:
    """Buffers that are loaded together.

    Attributes:
        phase: the last name of the region that loads them first.
        buffers: in the order in which they are loaded.
        places: where the program loads them.
        gathered: whether only rows of them are used.
    """

    phase: str
    buffers: tuple[Buffer, ...]
    places: int
    gathered: bool = False


def find_slabs(functional: Functional) -> list[LoadedTogether]:
    """The groups of the main block in the order in which they are first loaded. Buffers that the
    program stores to are in none."""
    stored = {n.attrs["buffer"] for n in walk(functional.main) if n.kind == "RemoteStore"}
    gathered = _gathered(functional.main)
    groups: dict[Buffer, list[Buffer]] = {}
    first: dict[Buffer, str] = {}
    places: dict[Buffer, int] = {}
    for phase, loaded in _places(functional.main, ""):
        kept = [buffer for buffer in loaded if buffer not in stored | gathered]
        for buffer in loaded:
            first.setdefault(buffer, phase)
            places[buffer] = places.get(buffer, 0) + 1
            groups.setdefault(buffer, [buffer])
        for buffer in kept[1:]:
            _join(groups, kept[0], buffer)
    found = {id(groups[buffer]): groups[buffer] for buffer in first if buffer not in stored}
    return [
        LoadedTogether(
            first[buffers[0]].rpartition("/")[2],
            tuple(buffers),
            places[buffers[0]],
            buffers[0] in gathered,
        )
        for buffers in found.values()
    ]


def find_stored(functional: Functional) -> list[LoadedTogether]:
    """The groups of buffers that the main block stores to, in the order of the first stores."""
    groups: dict[Buffer, list[Buffer]] = {}
    first: dict[Buffer, str] = {}
    places: dict[Buffer, int] = {}
    for phase, stored in _stores(functional.main, ""):
        for buffer in stored:
            first.setdefault(buffer, phase)
            places[buffer] = places.get(buffer, 0) + 1
            _join(groups, stored[0], buffer)
    found: dict[int, Buffer] = {}
    for buffer in first:
        found.setdefault(id(groups[buffer]), buffer)
    return [
        LoadedTogether(first[b].rpartition("/")[2], tuple(groups[b]), places[b])
        for b in found.values()
    ]


def _join(groups: dict[Buffer, list[Buffer]], into: Buffer, other: Buffer) -> None:
    for buffer in (into, other):
        groups.setdefault(buffer, [buffer])
    if groups[into] is not groups[other]:
        groups[into] += groups[other]
        for buffer in groups[other]:
            groups[buffer] = groups[into]


def _places(block: Block, region: str) -> Iterator[tuple[str, list[Buffer]]]:
    """Runs of loads with one offset, with the region that they belong to."""
    run: list[Node] = []
    for node in block.nodes:
        if run and (node.kind != "RemoteLoad" or node.inputs[0] is not run[0].inputs[0]):
            yield run[0].region or region, [load.attrs["buffer"] for load in run]
            run = []
        if node.kind == "RemoteLoad":
            run.append(node)
        for inner in node.blocks:
            yield from _places(inner, node.region or region)
    if run:
        yield run[0].region or region, [load.attrs["buffer"] for load in run]


def _stores(block: Block, region: str) -> Iterator[tuple[str, list[Buffer]]]:
    """What each block stores to at one offset, with the region that it belongs to."""
    stored: dict[int, tuple[str, list[Buffer]]] = {}
    for node in block.nodes:
        if node.kind == "RemoteStore":
            at = stored.setdefault(id(node.inputs[1]), (node.region or region, []))
            at[1].append(node.attrs["buffer"])
        for inner in node.blocks:
            yield from _stores(inner, node.region or region)
    yield from stored.values()


def _gathered(main: Block) -> set[Buffer]:
    """Buffers whose loads are gathered from along their first axis, and not used otherwise. What is
    nested in another node counts as another use."""
    homes = {
        id(node.outputs[0]): (node.attrs["buffer"], block)
        for block in _blocks(main)
        for node in block.nodes
        if node.kind == "RemoteLoad"
    }
    other: set[Buffer] = set()
    for block in _blocks(main):
        for node in block.nodes:
            is_gather = node.kind == "Gather" and node.attrs["axis"] == 0
            for index, val in enumerate(node.inputs):
                buffer, home = homes.get(id(val), (None, None))
                if buffer is not None and not (is_gather and index == 0 and home is block):
                    other.add(buffer)
        other |= {homes[id(val)][0] for val in block.results if id(val) in homes}
    return {buffer for buffer, _ in homes.values()} - other


def _blocks(block: Block) -> Iterator[Block]:
    """The block and all that are nested in it."""
    yield block
    for node in block.nodes:
        for inner in node.blocks:
            yield from _blocks(inner)
