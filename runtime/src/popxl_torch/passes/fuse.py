"""Fusion: several ops of a block become one step. The passes by name, and what they share.

A fused step computes what its ops compute and rounds no more often than they do: between them, a
half-precision value is not rounded. In float32 its result differs by the order of sums at most. The
passes need marks and keep them right; the setting ``fuse`` says which run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np

from popxl_torch.passes.drop_dead_nodes import drop_dead_nodes
from popxl_torch.passes.ssa import Block, Functional, Node, Val, used_outside

Rewrite = Callable[[Block], None]
"""Changes nodes of one block; blocks nested in it have been rewritten before."""


class Uses:
    """Which node makes each value of a block, and how often it is used.

    Both are looked up when they are first asked for: most rewrites find nothing in most blocks.
    A rewrite asks before it changes anything, so it sees the block as it was.
    """

    def __init__(self, block: Block) -> None:
        self._block = block

    @functools.cached_property
    def _makers(self) -> dict[int, Node]:
        return {id(out): node for node in self._block.nodes for out in node.outputs}

    @functools.cached_property
    def _users(self) -> dict[int, list[Node | None]]:
        users: dict[int, list[Node | None]] = {}
        for node in self._block.nodes:
            for val in used_outside(node):
                users.setdefault(id(val), []).append(node)
        for val in self._block.results:
            users.setdefault(id(val), []).append(None)
        return users

    def maker(self, val: Val, *kinds: str) -> Node | None:
        """The node of the block that makes the value, if it is one of ``kinds``."""
        node = self._makers.get(id(val))
        return node if node is not None and node.kind in kinds else None

    def own(self, val: Val, *kinds: str) -> Node | None:
        """As :meth:`maker`, if nothing but one node uses the value, once."""
        node = self.maker(val, *kinds)
        return node if node is not None and len(self._users.get(id(val), ())) == 1 else None

    def only_user(self, val: Val, *kinds: str) -> Node | None:
        """The one node that uses the value, if it is one of ``kinds``."""
        users = self._users.get(id(val), [])
        if len(users) != 1 or users[0] is None or users[0].kind not in kinds:
            return None
        return users[0]

    def is_used(self, val: Val) -> bool:
        """Whether anything uses the value."""
        return id(val) in self._users


def number(val: Val) -> float | None:
    """The value of a floating-point constant of one element."""
    if val.const is None or val.spec.nelms != 1 or not val.spec.dtype.startswith("float"):
        return None
    if val.spec.dtype.startswith("float8"):
        return None
    return float(np.asarray(val.const).reshape(()))


def fuse(functional: Functional, rewrites: Iterable[Rewrite]) -> Functional:
    """Run the rewrites in order on all blocks of the program, in place, and return it."""
    for rewrite in rewrites:
        for block in functional.blocks():
            _each(block, rewrite)
        drop_dead_nodes(functional)
    return functional


def _each(block: Block, rewrite: Rewrite) -> None:
    for node in block.nodes:
        for inner in node.blocks:
            _each(inner, rewrite)
    rewrite(block)
