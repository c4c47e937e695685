"""Check that a program is well-formed, or raise one error that names the culprit."""

from __future__ import annotations

from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import kinds, opdef
from popxl_torch.ir.records import Graph, Op, Program, Value


def verify(program: Program) -> None:
    """Every input is defined before its use, in its own graph, every value is defined once, and
    what is written in place fits.

    Raises:
        popart_exception: it is not so.
    """
    known = frozenset(kinds())
    for graph in program.graphs.values():
        _verify_graph(graph, known)


def _verify_graph(graph: Graph, known: frozenset[str]) -> None:
    defined: set[Value] = {v for v in graph.values.values() if v.kind != "op"}
    for op in graph.ops:
        if op.kind not in known:
            raise popart_exception(f"Unknown kind of {op.where()}")
        for value in op.inputs:
            if value is not None and value not in defined:
                raise popart_exception(f"Input {value} is not defined before {_window(graph, op)}")
        _verify_write(op)
        for value in op.outputs:
            if value in defined:
                raise popart_exception(f"Output {value} is defined twice, by {_window(graph, op)}")
            defined.add(value)
    for value in graph.outputs:
        if value not in defined:
            raise popart_exception(f"Output {value} of graph {graph.id!r} is never defined")


def _verify_write(op: Op) -> None:
    """What an op computes has the shape of the input that it writes it to."""
    facts = opdef(op.kind)
    if facts.writes is None or facts.pure in (None, op.kind):
        return
    written = op.inputs[facts.writes]
    assert written is not None
    assert facts.pure is not None
    inputs = [None if value is None else value.spec for value in op.inputs]
    result = opdef(facts.pure).infer(inputs, op.attrs)[0]
    if result.shape != written.spec.shape:
        raise popart_exception(f"{result} cannot be written into {written} by {op.where()}")


def _window(graph: Graph, op: Op, reach: int = 2) -> str:
    """The op and its neighbours, one per line."""
    at = graph.ops.index(op)
    lines = []
    for index in range(max(0, at - reach), min(len(graph.ops), at + reach + 1)):
        mark = ">" if index == at else " "
        near = graph.ops[index]
        lines.append(f"  {mark} {near.outputs} = {near.kind}({near.inputs})")
    return op.where() + ":\n" + "\n".join(lines)
