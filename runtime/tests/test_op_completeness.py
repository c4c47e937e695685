"""Every op that a program can create can be executed, and every kernel has an op."""

from __future__ import annotations

from collections.abc import Iterable

import popxl_addons.ops.cross_entropy_sharded_loss  # noqa: F401 (declares an op kind)
import popxl_addons.ops.fp8_mse_scale  # noqa: F401 (the same)
import popxl_addons.ops.rotary_pos_embed  # noqa: F401 (the same)
import pytest
from popxl_torch.ir.opdef import OpDef, define, elementwise, kinds, opdef, same
from popxl_torch.kernels import kernel_kinds

# Control flow and transfers: the executor's own steps.
ENGINE = {
    "Call",
    "Loop",
    "If",
    "Init",
    "HostLoad",
    "HostStore",
    "RemoteLoad",
    "RemoteLoadInplace",
    "RemoteStore",
    "RemoteCodeLoad",
}
# Kinds that passes make; no program creates them.
OF_PASSES = {
    "Attention",
    "JoinColumns",
    "JoinRows",
    "LayerNorm",
    "Linear",
    "MatMulColumns",
    "MatMulReduced",
    "RotarySplit",
    "SliceUpdate",
}


def without_kernel(definitions: Iterable[OpDef], kernels: Iterable[str]) -> list[str]:
    """Kinds that nothing can execute: their own or their pure kind needs a kernel."""
    known = {*kernels, *ENGINE}
    return [d.kind for d in definitions if (d.pure or d.kind) not in known]


def contradictory(definitions: Iterable[OpDef]) -> list[str]:
    """Kinds that alias or write without naming the kind that computes the same out of place."""
    return [
        d.kind
        for d in definitions
        if d.kind not in ENGINE and (d.writes is not None or d.view) and d.pure is None
    ]


def definitions() -> list[OpDef]:
    return [opdef(kind) for kind in kinds()]


def test_every_kind_can_be_executed():
    assert without_kernel(definitions(), kernel_kinds()) == []


def test_aliases_and_writes_name_their_pure_kind():
    assert contradictory(definitions()) == []


def test_pure_kinds_are_declared():
    declared = {*kinds()}
    missing = {d.pure for d in definitions() if d.pure is not None} - declared
    assert missing == set()


def test_every_kernel_has_an_op():
    assert {*kernel_kinds()} - {*kinds()} <= OF_PASSES


def test_the_engine_list_names_declared_kinds():
    assert {*kinds()} >= ENGINE


@pytest.mark.parametrize(
    ("definition", "found"),
    [
        (OpDef("Plain", elementwise), ["Plain"]),
        (OpDef("PlainInplace", same, pure="Plain", writes=0), ["PlainInplace"]),
        (OpDef("AddInplaceToo", same, pure="Add", writes=0), []),
        (OpDef("Add", elementwise), []),
        (OpDef("Call", elementwise), []),
    ],
)
def test_a_missing_kernel_is_found(definition: OpDef, found: list[str]):
    assert without_kernel([definition], kernel_kinds()) == found


def test_a_contradiction_is_found():
    assert contradictory([OpDef("Write", same, writes=0)]) == ["Write"]
    assert contradictory([OpDef("View", same, view=True)]) == ["View"]


def test_a_kind_is_declared_once():
    with pytest.raises(ValueError, match="declared twice"):
        define(OpDef("Add", elementwise))
