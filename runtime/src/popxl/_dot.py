"""Pictures of programs, as text for graphviz."""

from __future__ import annotations

from collections.abc import Iterator

from popxl_torch.ir.records import Graph, Program


def to_dot(program: Program) -> str:
    """A digraph with a cluster for each graph: ops as nodes, tensors as edges."""
    lines = ["digraph program {", "  node [shape=box];"]
    for number, graph in enumerate(program.graphs.values()):
        lines += [f"  subgraph cluster_{number} {{", f"    label={_quoted(graph.id or 'main')};"]
        lines += [f"    {line}" for line in _lines(graph)]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _lines(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        called = "".join(f"\n{callee.id}" for callee in op.graphs)
        yield f"op{op.opid} [label={_quoted(op.kind + called)}];"
        for value in op.inputs:
            if value is None:
                continue
            label = _quoted(f"{value.name} {value.spec}")
            if value.producer is not None:
                yield f"op{value.producer.opid} -> op{op.opid} [label={label}];"
            else:
                yield f"{_quoted(value.id)} -> op{op.opid} [label={label}];"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
