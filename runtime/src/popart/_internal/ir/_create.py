"""Adding ops to graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from popart._internal.ir._handles import Graph, Op
from popart._internal.ir._records import Settings
from popxl_torch.ir import records
from popxl_torch.ir.opdef import opdef


def append_op(
    graph: records.Graph,
    kind: str,
    inputs: list[records.Value | None],
    specs: Sequence[records.Spec],
    ids: Iterable[str],
    settings: Settings,
    attrs: Mapping[str, Any],
    graphs: tuple[records.Graph, ...] = (),
) -> records.Op:
    """A new op at the end of ``graph``, with one output for each of ``specs``.

    ``ids`` are taken one by one, when the outputs before are in the graph.
    """
    op = records.Op(
        next(graph.program.op_ids), kind, graph, inputs, [], dict(attrs), graphs,
        **settings.fields(),
    )  # fmt: skip
    for spec, value_id in zip(specs, ids, strict=True):
        value = records.Value(value_id, spec, graph, "op", op)
        value.ipu, value.tile_set = op.ipu, op.tile_set
        graph.values[value.id] = value
        op.outputs.append(value)
    graph.ops.append(op)
    return op


def create_op_in_graph(
    graph: Graph,
    kind: str,
    inputs: Mapping[int, str],
    outputs: Mapping[int, str],
    settings: Settings,
    attrs: Mapping[str, Any],
) -> Op:
    """A new op with inputs and outputs by index and id, as bindings of custom ops make them.

    Raises:
        popart_exception: the kind's rule rejects the inputs.
    """
    record = graph._record
    count = max(inputs, default=-1) + 1
    values = [record.values[inputs[i]] if i in inputs else None for i in range(count)]
    specs = opdef(kind).infer([None if v is None else v.spec for v in values], attrs)
    ids = [outputs[index] for index in sorted(outputs)]
    return Op(append_op(record, kind, values, specs, ids, settings, attrs))
