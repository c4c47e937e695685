"""Parts of runs that are recorded once as CUDA graphs and replayed: no launch costs Python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from popxl_torch.executor.trace import Trace

_LOG = logging.getLogger("popxl_torch")

WARM_UP = 2
"""Calls before one is recorded: libraries set themselves up, memory finds its place."""

Part = Callable[..., tuple[torch.Tensor, ...]]


class Recorder:
    """What the recorded parts of one session share: a stream, a pool of memory, whether it works.

    One pool serves all that are recorded in order: a part's outputs are used up in the run that
    made them, and in a run parts are replayed in the order in which they were recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.works = True

    def beside(self, part: Part, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The part's results, computed on the stream that records."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = part(*inputs)
        current.wait_stream(self.stream)
        return results

    def record(
        self, part: Part, inputs: Sequence[torch.Tensor], in_order: bool
    ) -> tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...]] | None:
        """A graph and where its results will be; nothing is computed. None if that fails.

        ``in_order``: whether parts that a run replays later are recorded later, too. Else memory of
        its own keeps its results, which theirs would overwrite.
        """
        graph = torch.cuda.CUDAGraph()
        pool = self.pool if in_order else None
        current = torch.cuda.current_stream(self.device)
        try:
            # Reading threads may go on; a failure leaves its stream, this comes back.
            with (
                torch.cuda.device(self.device),
                torch.cuda.stream(current),
                torch.cuda.graph(graph, pool, self.stream, capture_error_mode="thread_local"),
            ):
                results = part(*inputs)
        except Exception as error:
            self.works = False
            _LOG.warning("runs are not recorded as CUDA graphs, which is slower: %s", error)
            return None
        return graph, results


class Recorded:
    """A function of tensors that needs nothing of the host, recorded when it has been called
    :data:`WARM_UP` times."""

    def __init__(
        self, part: Part, places: Callable[[], object], trace: Trace, recorder: Recorder
    ) -> None:
        """Nothing is recorded yet.

        Args:
            part: the function.
            places: tells apart where the memory lies that it uses besides its inputs.
            trace: is told of the bytes that a replay loads.
            recorder: of the session.
        """
        self._part = part
        self._places = places
        self._trace = trace
        self._recorder = recorder
        self._calls = 0
        self._in_order = True
        self._seen: object = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[torch.Tensor] = []
        self._outputs: tuple[torch.Tensor, ...] = ()
        self._loaded_bytes = 0

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The function's results. They hold until the next call."""
        if not self._recorder.works:
            return self._part(*inputs)
        if self._calls and self._places() != self._seen:
            # A call that is not recorded comes first: it may take memory for what is written.
            self._graph, self._calls = None, min(self._calls, WARM_UP - 1)
            self._in_order = False
        if self._calls < WARM_UP:
            outputs = self._recorder.beside(self._part, inputs)
            self._calls, self._seen = self._calls + 1, self._places()
            return outputs
        if self._graph is None:
            if not self._record(inputs):
                return self._part(*inputs)
        else:
            self._trace.current.loaded_bytes += self._loaded_bytes
        assert self._graph is not None
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._outputs

    def _record(self, inputs: Sequence[torch.Tensor]) -> bool:
        self._inputs = [tensor.clone() for tensor in inputs]
        before: Any = self._trace.current.loaded_bytes
        made = self._recorder.record(self._part, self._inputs, self._in_order)
        if made is None:
            return False
        self._graph, self._outputs = made
        self._loaded_bytes = self._trace.current.loaded_bytes - before
        return True
