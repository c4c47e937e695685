"""The table of kernels, and what a kernel is.

A *factory* is called once per op when a plan is bound: ``factory(site, lead)`` returns a function
of torch tensors, which the plan calls on every run. ``site`` holds the attributes and per-replica
specs; ``lead`` is 1 if the tensors carry a leading replica axis, else 0, so a factory that works
along an axis adds ``lead`` to it.

What the binder does around the function, so that kernels stay short:

- float16 inputs arrive as float32 and results are rounded to the op's dtype (``raw=True`` and ops
  that only move data get tensors as stored; a raw kernel may return any floating dtype);
- with ``lead`` 1, inputs that are equal on all replicas are expanded to the replica axis, except
  for ``broadcast=True`` kernels, which get axes aligned for broadcasting;
- a kernel with ``batched=False`` is always called with ``lead`` 0, once per replica;
- a ``replicated=True`` kernel gets tensors as stored, with the replica axis where
  ``site.varying_ins`` says so, and handles the axis itself (collectives, joined shards).

A kernel may offer ``prepare`` besides: ``prepare(site, known)`` is called when a plan is bound,
with the inputs that are known by then, weights above all, and None for the others. It returns a
function of the others alone that gives the same bits, or None to leave it to the factory's. Inputs
come as stored, as to a ``replicated`` kernel. What is known may be read and viewed, not copied:
weights may be written between runs. In a loop it is called for each iteration.

``host=True`` says that a kernel reads values of its inputs on the host, or brings values from
there: on a GPU such a kernel cannot be recorded (see plan/recording.py).

Storage: uint16 is held as int32, uint32 and uint64 as int64, float8 as uint8 codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from popxl_torch.ir.records import Spec


@dataclass(frozen=True, slots=True)
class Site:
    """One op as a kernel factory sees it: shapes are those of one replica."""

    kind: str
    attrs: Mapping[str, Any]
    ins: Sequence[Spec | None]
    outs: Sequence[Spec]
    replicas: int = 1
    where: str = ""
    varying_ins: tuple[bool, ...] = ()
    varying_outs: tuple[bool, ...] = ()


Factory = Callable[[Site, int], Callable[..., Any]]
Prepare = Callable[[Site, Sequence[Any]], Callable[..., Any] | None]


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """A factory and how the binder must treat its tensors (see the module's text)."""

    factory: Factory
    broadcast: bool = False
    batched: bool = True
    raw: bool = False
    replicated: bool = False
    prepare: Prepare | None = None
    host: bool = False


_TABLE: dict[str, KernelEntry] = {}


def kernel(
    *kinds: str,
    broadcast: bool = False,
    batched: bool = True,
    raw: bool = False,
    replicated: bool = False,
    prepare: Prepare | None = None,
    host: bool = False,
) -> Callable[[Factory], Factory]:
    """Register a factory for op kinds; a kind may be registered once."""

    def register(factory: Factory) -> Factory:
        for kind in kinds:
            if kind in _TABLE:
                raise ValueError(f"kernel {kind} is registered twice")
            _TABLE[kind] = KernelEntry(factory, broadcast, batched, raw, replicated, prepare, host)
        return factory

    return register


def kernel_entry(kind: str) -> KernelEntry:
    """The entry of ``kind``; KeyError if no family has it."""
    return _TABLE[kind]


def host_kinds() -> frozenset[str]:
    """Kinds whose kernels need the host in a run: they cannot be recorded."""
    return frozenset(kind for kind, entry in _TABLE.items() if entry.host)


def kernel_kinds() -> tuple[str, ...]:
    """All kinds that have a kernel."""
    return tuple(_TABLE)
