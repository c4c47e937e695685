"""Which way a run takes through the program, where its integers alone tell.

A condition is *settled* if it is computed of host inputs and constants, all of them small integers
or booleans: those are exact on every device, so the conditions are computed before the run, and
only the branches taken are lowered. Conditions in loops, and ones that depend on anything else,
are left to the run.

``find_choices`` makes a program of the settled conditions alone. It takes the same way, and notes
on it what each condition was, so the notes name the way. ``take`` cuts the main block down to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from popxl_torch.ir.records import Stream
from popxl_torch.passes.drop_dead_nodes import drop_dead_nodes
from popxl_torch.passes.ssa import Block, Functional, Node, Val, used_outside, walk

Path = tuple[bool, ...]

_SMALL = 64
"""Elements of a value that a condition may be computed of."""

_COMPUTED = frozenset({
    "Abs", "Add", "And", "Cast", "Concat", "DynamicSlice", "Equal", "Gather", "Greater", "Identity",
    "Max", "Min", "Mul", "Neg", "Not", "Or", "ReduceMax", "ReduceMin", "ReduceSum", "Reshape",
    "Slice", "Sub", "Transpose", "Where",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choices:
    """The settled conditions of a program.

    Attributes:
        program: its main block computes them; ``Decide`` notes each.
        nodes: ids of the conditionals.
        streams: what they are computed of.
        loaded_once: streams that a run loads once at most, so that it may as well not.
    """

    program: Functional
    nodes: frozenset[int]
    streams: tuple[Stream, ...]
    loaded_once: frozenset[Stream]


def find_choices(functional: Functional) -> Choices:
    """The settled conditions of the main block."""
    finder = _Finder(functional)
    finder.visit(functional.main)
    needed: set[int] = set()
    block = finder.slice(functional.main, needed)
    constants = [val for val in functional.constants if id(val) in needed]
    program = Functional(functional.replicas, block, Block(), Block(), constants)
    streams = [node.attrs["stream"] for node in walk(block) if node.kind == "HostLoad"]
    return Choices(program, frozenset(finder.settled), tuple(streams), finder.loaded_once)


def take(functional: Functional, choices: Choices, path: Path) -> Functional:
    """The program of runs that take a way: its main block without the other branches."""
    main = _taken(functional.main, choices, iter(path))
    taken = replace(functional, main=main).only("main")
    drop_dead_nodes(taken)
    used = {id(val) for node in walk(main) for val in used_outside(node)}
    for block in (main, *(inner for node in walk(main) for inner in node.blocks)):
        block.nodes = [node for node in block.nodes if not _is_idle(node, choices, used)]
    return taken


def _taken(block: Block, choices: Choices, path: Iterator[bool]) -> Block:
    """A copy of a block on the way, down to its nodes' lists; values are shared."""
    nodes = []
    for node in block.nodes:
        if id(node) in choices.nodes:
            branch = _taken(node.blocks[0 if next(path) else 1], choices, path)
            nodes.append(replace(node, kind="Taken", inputs=[], blocks=(branch,)))
        else:
            blocks = tuple(_taken(inner, choices, path) for inner in node.blocks)
            nodes.append(replace(node, blocks=blocks))
    return Block(block.params, nodes, block.results)


def _is_idle(node: Node, choices: Choices, used: set[int]) -> bool:
    """Whether a node loads what nobody needs, and no later load is another element for it."""
    if node.kind != "HostLoad" or node.attrs["stream"] not in choices.loaded_once:
        return False
    return id(node.outputs[0]) not in used


class _Finder:
    def __init__(self, functional: Functional) -> None:
        self.settled: set[int] = set()
        counts: dict[Stream, int] = {}
        _count_loads(functional.main, 1, counts)
        self.loaded_once = frozenset(stream for stream, count in counts.items() if count == 1)
        self._computed: set[int] = set()

    def visit(self, block: Block) -> None:
        """Find what is computed of small integers, in a block that every settled way passes."""
        for node in block.nodes:
            if node.kind == "If" and self._is_computed(node.inputs[0]):
                self.settled.add(id(node))
                for inner in node.blocks:
                    self.visit(inner)
                results = zip(*(inner.results for inner in node.blocks), strict=True)
                for out, both in zip(node.outputs, results, strict=True):
                    if all(map(self._is_computed, both)):
                        self._computed.add(id(out))
            elif self._computes(node):
                self._computed |= {id(out) for out in node.outputs}

    def _is_computed(self, val: Val) -> bool:
        return id(val) in self._computed or (val.const is not None and _is_exact(val))

    def _computes(self, node: Node) -> bool:
        if not all(map(_is_exact, node.outputs)):
            return False
        if node.kind == "HostLoad":
            return node.attrs["stream"] in self.loaded_once
        return node.kind in _COMPUTED and all(map(self._is_computed, node.inputs))

    def slice(self, block: Block, needed: set[int]) -> Block:
        """The nodes of a block that settled conditions and the values ``needed`` depend on."""
        kept: list[Node] = []
        for node in reversed(block.nodes):
            if id(node) in self.settled:
                kept += self._decide(node, needed)[::-1]
            elif any(id(out) in needed for out in node.outputs):
                needed |= {id(val) for val in node.inputs}
                kept.append(node)
        return Block([], kept[::-1], [val for val in block.results if id(val) in needed])

    def _decide(self, node: Node, needed: set[int]) -> list[Node]:
        outs = [out for out in node.outputs if id(out) in needed]
        blocks = []
        for inner in node.blocks:
            pairs = zip(node.outputs, inner.results, strict=True)
            results = [result for out, result in pairs if id(out) in needed]
            needed |= {id(val) for val in results}
            blocks.append(Block([], self.slice(inner, needed).nodes, results))
        needed.add(id(node.inputs[0]))
        decide = Node("Decide", node.inputs, [], {}, (), node.where, node.region)
        return [decide, Node("If", node.inputs, outs, {}, tuple(blocks), node.where, node.region)]


def _count_loads(block: Block, times: int, counts: dict[Stream, int]) -> None:
    for node in block.nodes:
        if node.kind == "HostLoad":
            stream = node.attrs["stream"]
            counts[stream] = counts.get(stream, 0) + times
        for inner in node.blocks:
            _count_loads(inner, 2 if node.kind == "Loop" else times, counts)


def _is_exact(val: Val) -> bool:
    """Whether a value is small, and whole numbers or booleans."""
    return val.spec.nelms <= _SMALL and (val.spec.dtype == "bool" or "int" in val.spec.dtype)
