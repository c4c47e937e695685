"""From a marked functional block to a plan: slots, liveness, expansion, regions of the trace."""

from __future__ import annotations

import itertools

from popxl_torch.ir.opdef import kinds, opdef
from popxl_torch.passes.ssa import Block, Functional, Node, Val, communicates, has_effect
from popxl_torch.plan.steps import Body, Operand, Plan, Step


class NotVectorisable(Exception):
    """Replicas may take different paths that act on something, or that meet other replicas: they
    must run one by one."""


def lower(functional: Functional, block: Block) -> Plan:
    """The plan of one top-level block.

    Raises:
        NotVectorisable: a branch with effects or collectives may be taken by some replicas only.
    """
    return _Lowering(functional).plan(block)


class _Lowering:
    def __init__(self, functional: Functional) -> None:
        self.functional = functional
        self.operands: dict[Val, Operand] = {}
        self.numbers = itertools.count()

    def plan(self, block: Block) -> Plan:
        constants = [
            (self._operand(val).slot, val.spec, val.const) for val in self.functional.constants
        ]
        steps = self._marked(block.nodes)
        steps.append(Step("Mark", attrs={"region": None, "runs": 0}))
        body = Body((), steps, self._operands(block.results))
        _free(body)
        return Plan(self.functional.replicas, next(self.numbers), constants, body)

    def _marked(self, nodes: list[Node]) -> list[Step]:
        """The steps of nodes, with a mark where each region begins."""
        steps = []
        for region, members in itertools.groupby(nodes, key=lambda node: node.region):
            segment = list(members)
            steps.append(Step("Mark", attrs={"region": region, "runs": _runs(segment)}))
            for node in segment:
                steps += self._node(node)
        return steps

    def _operand(self, val: Val) -> Operand:
        if val not in self.operands:
            self.operands[val] = Operand(next(self.numbers), val.spec, val.varying)
        return self.operands[val]

    def _operands(self, vals: list[Val]) -> tuple[Operand, ...]:
        return tuple([self._operand(val) for val in vals])

    def _node(self, node: Node) -> list[Step]:
        if node.kind == "Loop":
            return self._loop(node)
        if node.kind in ("If", "Taken"):
            return self._if(node)
        return [
            Step(
                node.kind,
                self._operands(node.inputs),
                self._operands(node.outputs),
                node.attrs,
                where=node.where,
            )
        ]

    def _expanded(self, val: Val, wanted: bool, steps: list[Step]) -> Operand:
        """The operand of ``val``, given the replica axis if ``wanted`` and missing."""
        source = self._operand(val)
        if not wanted or val.varying:
            return source
        target = Operand(next(self.numbers), val.spec, True)
        steps.append(Step("Expand", (source,), (target,)))
        return target

    def _block(self, block: Block, varying: list[bool], region: str | None = None) -> Body:
        """The body of a loop, or of a branch in a region."""
        params = self._operands(block.params)
        steps: list[Step] = []
        if region is not None and any(node.region != region for node in block.nodes):
            steps += self._marked(block.nodes)
            steps.append(Step("Mark", attrs={"region": region, "runs": 0}))
        else:
            for node in block.nodes:
                steps += self._node(node)
        results = tuple(
            self._expanded(val, wanted, steps)
            for val, wanted in zip(block.results, varying, strict=True)
        )
        return Body(params, steps, results)

    def _loop(self, node: Node) -> list[Step]:
        (block,) = node.blocks
        before: list[Step] = []
        varying = [param.varying for param in block.params]
        ins = tuple(
            self._expanded(val, wanted, before)
            for val, wanted in zip(node.inputs, varying, strict=True)
        )
        body = self._block(block, varying)
        outs = self._operands(node.outputs)
        return [*before, Step("Loop", ins, outs, node.attrs, (body,), where=node.where)]

    def _if(self, node: Node) -> list[Step]:
        varying = [out.varying for out in node.outputs]
        bodies = tuple(self._block(block, varying, node.region) for block in node.blocks)
        kind = node.kind
        if any(val.varying for val in node.inputs):
            kind = "Select"
            inner = [n for block in node.blocks for n in block.nodes]
            if any(has_effect(n) or communicates(n) for n in inner):
                raise NotVectorisable(node.where)
        ins, outs = self._operands(node.inputs), self._operands(node.outputs)
        return [Step(kind, ins, outs, node.attrs, bodies, where=node.where)]


def _runs(segment: list[Node]) -> int:
    """How often a region runs: the iterations of its loop, if a loop is all that it consists of."""
    known = frozenset(kinds())
    work = [n for n in segment if n.kind not in known or not opdef(n.kind).moves_data]
    if len(work) == 1 and work[0].kind == "Loop":
        return work[0].attrs["count"]
    return 1


def _free(body: Body) -> set[int]:
    """Fill in ``frees``: a body frees what it defines, the step around it frees what it takes.

    Returns the slots that the body takes from around it.
    """
    own = {operand.slot for operand in body.params}
    own |= {operand.slot for step in body.steps for operand in step.outs}
    used = {operand.slot for operand in body.results}
    live = set(used)
    for step in reversed(body.steps):
        taken = {operand.slot for operand in step.ins}.union(*map(_free, step.bodies))
        used |= taken
        touched = (taken & own) | {operand.slot for operand in step.outs}
        step.frees = tuple(sorted(touched - live))
        live |= touched
    return used - own
