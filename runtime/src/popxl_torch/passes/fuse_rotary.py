"""Neighbouring parts of one tensor that are rotated by the same tables are rotated together.

Queries and keys that come from one product are such parts:

    RotarySplit(x, sin, cos) -> the parts of Split(x), those in ``rotated`` (first, number) rotated
"""

from __future__ import annotations

from popxl_torch.passes.fuse import Uses
from popxl_torch.passes.ssa import Block, Node, Val, used_outside


def fuse_rotary(block: Block) -> None:
    """Rewrite one block in place."""
    uses = Uses(block)
    for split in list(block.nodes):
        if split.kind == "Split" and split.attrs["axis"] == len(split.inputs[0].spec.shape) - 1:
            turns = _rotations(split, uses)
            if len(turns) > 1 and _move_behind(block, split, turns[0][1].inputs[1:]):
                _fuse(split, turns)


def _move_behind(block: Block, split: Node, tables: list[Val]) -> bool:
    """Whether the split could be placed where its parts are first used and the tables exist."""
    made = {id(out): i for i, node in enumerate(block.nodes) for out in node.outputs}
    parts = {id(out) for out in split.outputs}
    first_use = next(
        i for i, node in enumerate(block.nodes) if any(id(v) in parts for v in used_outside(node))
    )
    if any(made.get(id(table), -1) >= first_use for table in tables):
        return False
    block.nodes.insert(first_use, split)
    block.nodes.remove(split)  # the earlier one
    return True


def _rotations(split: Node, uses: Uses) -> list[tuple[int, Node]]:
    """Neighbouring parts of equal size, from the first one that is rotated, and their rotations."""
    found: list[tuple[int, Node]] = []
    sizes = split.attrs["sizes"]
    for part, out in enumerate(split.outputs):
        turn = uses.only_user(out, "RotaryPosEmbed")
        first = found[0] if found else (part, turn)
        if (
            turn is not None
            and first[1] is not None
            and _alike(turn, first[1])
            and sizes[part] == sizes[first[0]]
            and turn.outputs[0].varying == out.varying  # so that all parts have a replica axis
        ):
            found.append((part, turn))
        elif found:
            break
    return found


def _alike(turn: Node, other: Node) -> bool:
    same = all(a is b for a, b in zip(turn.inputs[1:], other.inputs[1:], strict=True))
    return same and turn.attrs == other.attrs


def _fuse(split: Node, turns: list[tuple[int, Node]]) -> None:
    """The split makes the rotated parts; nothing uses what the rotations make now."""
    split.kind = "RotarySplit"
    split.inputs = [*split.inputs, *turns[0][1].inputs[1:]]
    split.attrs = {
        **turns[0][1].attrs,
        "sizes": split.attrs["sizes"],
        "rotated": (turns[0][0], len(turns)),
    }
    for part, turn in turns:
        split.outputs[part], turn.outputs[0] = turn.outputs[0], split.outputs[part]
