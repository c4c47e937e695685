"""What a plan's values are before any run: steps whose inputs are known are done once, when bound.

- A load of an entry that nothing stores to is a view, and so are reshapes, transposes and slices
  of it. In a loop whose index is known, they are tables: a value for each iteration.
- Small results of constants, such as the index itself, are computed.

A step that fails here is executed in the run: the error then comes if the step is reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popxl_torch.backends.base import Backend
from popxl_torch.executor.remote_store import RemoteStore
from popxl_torch.plan.steps import LONGEST, VIEWS, Body, Step, is_small


class Folder:
    """Executes steps of a plan that is being bound."""

    def __init__(self, backend: Backend, remote: RemoteStore) -> None:
        self.backend = backend
        self.remote = remote
        # Slots of views of remote memory. Their contents may change between runs.
        self._weights: set[int] = set()

    def fold(self, step: Step, inputs: Sequence[Any]) -> tuple[Any, ...] | None:
        """Results of a step with known inputs; None if it is for the runs to execute."""
        weights = any(operand.slot in self._weights for operand in step.ins)
        try:
            if step.kind == "RemoteLoad":
                results, weights = self._load(step, inputs[0]), True
            else:
                results = self._compute(step, inputs, weights)
        except Exception:
            return None
        if weights and results is not None:
            self._weights |= {out.slot for out in step.outs}
        return results

    def _load(self, step: Step, offset: Any) -> tuple[Any, ...] | None:
        buffer, (out,) = step.attrs["buffer"], step.outs
        if step.ins[0].varying or not self.remote.is_fixed(buffer):
            return None
        return (self.remote.view(buffer, self.backend.integer(offset), out.varying),)

    def _compute(self, step: Step, inputs: Sequence[Any], weights: bool) -> tuple[Any, ...] | None:
        is_view = step.kind in VIEWS
        if not is_view and (weights or not is_small(step)):
            return None
        if step.kind == "Expand":
            return (self.backend.expand(inputs[0]),)
        results = self.backend.bind(step)(*inputs)
        results = (results,) if len(step.outs) == 1 else tuple(results)
        if is_small(step) and not weights:
            return results
        return results if all(self.backend.is_view(r, inputs[0]) for r in results) else None

    def tables(
        self, loop: Step, known: Mapping[int, Any]
    ) -> tuple[dict[int, list[Any]], dict[int, Any]]:
        """Values in a loop's body that depend on the number of the iteration alone.

        Returns:
            By slot, the value of each iteration; and, of parameters, the value after the last.
        """
        (body,) = loop.bodies
        count = loop.attrs["count"]
        pairs = zip(body.params, loop.ins, strict=True)
        starts = {param.slot: known[start.slot] for param, start in pairs if start.slot in known}
        if count > LONGEST:
            return {}, {}
        while True:
            columns, ends = self._iterate(body, count, starts, known)
            if len(ends) == len(starts):
                return columns, ends
            starts = {slot: starts[slot] for slot in ends}

    def _iterate(
        self, body: Body, count: int, starts: dict[int, Any], known: Mapping[int, Any]
    ) -> tuple[dict[int, list[Any]], dict[int, Any]]:
        """As :meth:`tables`, if all parameters of ``starts`` stay known; else those that do."""
        columns: dict[int, list[Any]] = {}
        current = starts
        for _ in range(count):
            values = {**known, **current}
            for step in body.steps:
                if step.bodies or any(operand.slot not in values for operand in step.ins):
                    continue
                results = self.fold(step, [values[operand.slot] for operand in step.ins])
                if results is not None:
                    values.update(zip((out.slot for out in step.outs), results, strict=True))
            for slot in values.keys() - known.keys():
                columns.setdefault(slot, []).append(values[slot])
            current = {
                param.slot: values[result.slot]
                for param, result in zip(body.params, body.results, strict=True)
                if param.slot in starts and result.slot in values
            }
            if len(current) < len(starts):
                break
        return {slot: column for slot, column in columns.items() if len(column) == count}, current
