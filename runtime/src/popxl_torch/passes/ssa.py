"""The functional program that passes work on.

    Program = blocks for the main run and for the two weight-transfer fragments, constants
    Block   = params, nodes in order, results
    Node    = kind, inputs, attributes, nested blocks, outputs
    Val     = one immutable value; ``varying`` if it may differ between replicas

Calls are inlined, aliases and in-place ops are gone: a write makes a new Val. Nested blocks see the
values of the blocks around them. Kinds that PopXL does not have:

    ReadState / WriteState   a variable (or another tensor that lives across runs): attrs["state"]
    Expand                   a value equal on all replicas, given the replica axis
    SliceUpdate              attrs of Slice: the first input with the slice replaced by the second
    MatMulColumns            uniform x varying matmul, computed as one product over joined columns
    Taken                    the branch of an If that the run at hand takes: no inputs, one block
    Decide                   notes a condition (see resolve_branches)
    RemoteUpdate             a window of a remote entry replaced in place; gives the entry (a view)
    MatMulReduced            varying x varying matmul followed by a sum over all replicas
    JoinColumns, JoinRows    the shards of these two's matrices as one
    Linear, Sum, Attention, LayerNorm, RotarySplit   several ops in one (see the passes fuse_*)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from popxl_torch.ir.records import Spec


@dataclass(eq=False, slots=True)
class Val:
    """An immutable value of per-replica shape and dtype ``spec``."""

    spec: Spec
    name: str = ""
    varying: bool = False
    const: Any = None

    def __repr__(self) -> str:
        mark = "~" if self.varying else ""
        return f"%{self.name}{mark}:{self.spec.dtype}{list(self.spec.shape)}"


@dataclass(eq=False, slots=True)
class Node:
    """One operation. ``region`` is where the trace counts it: the outermost name scope of the
    main graph, or of a branch in it."""

    kind: str
    inputs: list[Val]
    outputs: list[Val]
    attrs: dict[str, Any] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    where: str = ""
    region: str = ""


@dataclass(eq=False, slots=True)
class Block:
    """Nodes in order of execution."""

    params: list[Val] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    results: list[Val] = field(default_factory=list)


BLOCKS = ("main", "from_host", "to_host")
"""The top-level blocks of a program."""


@dataclass(eq=False, slots=True)
class Functional:
    """The functional form of a whole Ir."""

    replicas: int
    main: Block
    from_host: Block
    to_host: Block
    constants: list[Val] = field(default_factory=list)

    def blocks(self) -> tuple[Block, Block, Block]:
        """The three top-level blocks."""
        return self.from_host, self.main, self.to_host

    def only(self, name: str) -> Functional:
        """The program with one of them, the others empty."""
        parts = {part: Block() for part in BLOCKS}
        parts[name] = getattr(self, name)
        return Functional(self.replicas, **parts, constants=self.constants)


EFFECTS = frozenset(
    {
        "HostLoad",
        "HostStore",
        "RemoteStore",
        "RemoteUpdate",
        "WriteState",
        "PrintTensor",
    }
)
"""Kinds that must run even when nothing uses their outputs. (A host load moves its cursor.)"""


def has_effect(node: Node) -> bool:
    """Whether the node or one nested in it acts beyond its outputs. Remote loads only read."""
    if node.kind in EFFECTS:
        return True
    return any(inner.kind in EFFECTS for block in node.blocks for inner in walk(block))


def communicates(node: Node) -> bool:
    """Whether the node or one nested in it exchanges data between replicas."""
    if node.kind.startswith("Replicated"):
        return True
    if "MatMulReduced" in (node.kind, node.attrs.get("product")):
        return True
    return any(communicates(inner) for block in node.blocks for inner in block.nodes)


def walk(block: Block) -> Iterator[Node]:
    """All nodes, nested ones after the node that holds them."""
    for node in block.nodes:
        yield node
        for inner in node.blocks:
            yield from walk(inner)


def used_outside(node: Node) -> list[Val]:
    """Inputs of the node and every value that its nested blocks take from around them."""
    if not node.blocks:
        return node.inputs
    taken: list[Val] = []
    inside: set[int] = set()
    for block in node.blocks:
        _gather(block, taken, inside)
    return [*node.inputs, *(val for val in taken if id(val) not in inside)]


def _gather(block: Block, taken: list[Val], inside: set[int]) -> None:
    """What a block and those nested in it use, and the ids of what they make."""
    inside.update(map(id, block.params))
    for node in block.nodes:
        taken += node.inputs
        for inner in node.blocks:
            _gather(inner, taken, inside)
        inside.update(map(id, node.outputs))
    taken += block.results


def text(block: Block, indent: str = "") -> str:
    """The block as readable lines, for debugging and tests of passes."""
    lines = []
    for node in block.nodes:
        outs = ", ".join(map(repr, node.outputs))
        ins = ", ".join(f"%{val.name}" for val in node.inputs)
        shown = {k: v for k, v in node.attrs.items() if k not in ("stream", "buffer", "state")}
        lines.append(f"{indent}{outs} = {node.kind}({ins}) {shown or ''}".rstrip())
        for inner in node.blocks:
            params = ", ".join(map(repr, inner.params))
            lines.append(f"{indent}  block({params}):")
            lines.append(text(inner, indent + "    "))
            results = ", ".join(f"%{val.name}" for val in inner.results)
            lines.append(f"{indent}    -> {results}")
    return "\n".join(lines)
