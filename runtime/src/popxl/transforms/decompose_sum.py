"""Gradient sums as chains of accumulations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from popart._internal import ir as _ir
from popxl.ops.init import init_attrs

if TYPE_CHECKING:
    from popxl.graph import Graph
    from popxl_torch.ir.records import Op


def decompose_sum(graph: Graph) -> Graph:
    """Sums of several gradients become zeros to which each addend is added when it is there.

    So no addend has to be kept until the last one is made. Values are the same up to rounding.

    Args:
        graph: a gradient graph; its ``Sum`` ops are replaced by an ``Init`` and as many
            ``AddLhsInplace`` as each has inputs.

    Returns:
        The same graph.
    """
    for op in [op for op in graph._record.ops if op.kind == "Sum"]:
        _decompose(graph, op)
    return graph


def _decompose(graph: Graph, op: Op) -> None:
    record, (result,) = op.graph, op.outputs
    places = {made: index for index, made in enumerate(record.ops)}
    addends = [value for value in op.inputs if value is not None]
    addends.sort(key=lambda value: places.get(value.producer, -1) if value.producer else -1)
    settings = _ir.Settings.of(op)

    def insert(kind: str, inputs: list, name: str, attrs: dict, at: int) -> Op:
        ids = [graph._create_tensor_id(name)]
        made = _ir.append_op(record, kind, inputs, [result.spec], ids, settings, attrs)
        record.ops.insert(at, record.ops.pop())
        return made

    at = 1 + places.get(addends[0].producer, -1) if addends[0].producer else 0
    last = insert("Init", [], f"{result.name}_init", init_attrs(result.spec, zero=True), at)
    for addend in addends:
        after = [record.ops.index(made) for made in (last, addend.producer) if made is not None]
        inputs = [last.outputs[0], addend]
        last = insert("AddLhsInplace", inputs, f"{result.name}_sum", {}, 1 + max(after))
    record.ops.remove(op)
    del record.values[last.outputs[0].id]
    last.outputs[0], result.producer = result, last
