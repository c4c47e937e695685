"""The Ir: one program under construction."""

from __future__ import annotations

import inspect
import itertools
import os
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, List, Literal, Tuple

import popart
import popdist
from popart._internal import ir as _ir
from popxl._dot import to_dot
from popxl.context import get_current_context
from popxl.graph import Graph
from popxl.module import Module
from popxl.replica_grouping import ReplicaGrouping
from popxl.streams import DeviceToHostStream, HostToDeviceStream, Stream
from popxl.tensor import Tensor, TensorByRef, TensorSpec, graph_input, graph_output
from popxl_torch.ir import records

_IR_IDS = itertools.count()


class Ir:
    """Owns the graphs, remote buffers, streams and session options of one program."""

    def __init__(self, replication: int | Literal["popdist"] = 1) -> None:
        """``replication`` replicas; ``"popdist"`` takes the number from the launch environment."""
        self._program = records.Program(next(_IR_IDS))
        self._program.options = popart.SessionOptions()
        self._program.owner = weakref.ref(self)
        self._program.graphs[""] = records.Graph("", self._program)
        self._tensors: dict[records.Value, Tensor] = {}
        self._graphs: dict[records.Graph, Graph] = {}
        self._streams: dict[records.Stream, Stream] = {}
        self._stale = False
        self._read_only = False  # whether a read-only memory map forbids fetching weights
        if replication == "popdist":
            popdist.popart.configureSessionOptions(self._program.options)
            replication = self._program.options.replicatedGraphCount
        self._set_replication(int(replication))
        cache = os.environ.get("POPXL_CACHE_DIR") or os.environ.get("POPART_CACHE_DIR")
        if cache:
            self._program.options.enableEngineCaching = True
            self._program.options.cachePath = cache

    @classmethod
    def _from_pb(cls, pb_ir: Any) -> Ir:
        return pb_ir._program.frontend

    @property
    def _pb_ir(self) -> Any:
        return _ir.Ir(self._program)

    def _graph(self, record: records.Graph) -> Graph:
        """The one Graph object of an IR record."""
        if record not in self._graphs:
            self._graphs[record] = Graph._make(record, self)
        return self._graphs[record]

    @property
    def main_graph(self) -> Graph:
        """The graph that a session runs."""
        return self._graph(self._program.main)

    @property
    def id(self) -> int:
        """Unique in this process."""
        return self._program.id

    @property
    def num_host_transfers(self) -> int:
        """How many transfers the arrays of each stream hold per run."""
        return self._program.num_host_transfers

    @num_host_transfers.setter
    def num_host_transfers(self, value: int) -> None:
        self._program.num_host_transfers = value

    @property
    def replication_factor(self) -> int:
        """Number of replicas of all processes; RuntimeError when set after a session was made."""
        options = self._program.options
        if options.enableDistributedReplicatedGraphs:
            return options.globalReplicationFactor
        return self.instance_replication_factor

    @replication_factor.setter
    def replication_factor(self, value: int) -> None:
        if self._program.prepared:
            raise RuntimeError("Cannot set the replication factor of an Ir that has a session.")
        self._set_replication(value)

    def _set_replication(self, value: int) -> None:
        self._program.options.replicatedGraphCount = value
        if value > 1:
            self._program.options.enableReplicatedGraphs = True
        self._program.replication = self.replication_factor

    @property
    def instance_replication_factor(self) -> int:
        """Replicas of this process."""
        options = self._program.options
        return options.replicatedGraphCount if options.enableReplicatedGraphs else 1

    def create_empty_graph(self, name: str | None = None) -> Graph:
        """A sub-graph without inputs; fill it inside ``with graph:``."""
        graph_id = f"{name or 'graph'}_subgraph({next(self._program.graph_ids)})"
        record = records.Graph(graph_id, self._program)
        self._program.graphs[graph_id] = record
        return self._graph(record)

    def create_graph(
        self,
        fn: Callable[..., None | Tensor | Iterable[Tensor]] | Module,
        *args: Any,
        **kwargs: Any,
    ) -> Graph:
        """A sub-graph of what ``fn`` builds. Tensors and TensorSpecs among the arguments become
        graph inputs, everything else is passed through.

        Raises:
            TypeError: ``fn`` is neither a function nor a Module, or a container mixes tensors with
                other values.
            ValueError: the arguments do not fit the signature, or the result is not tensors.
        """
        if isinstance(fn, Module):
            signature, name = inspect.signature(fn.build), type(fn).__qualname__
        elif hasattr(fn, "__qualname__"):
            signature, name = inspect.signature(fn), fn.__qualname__
        else:
            raise TypeError(
                "Callable `fn` must be either a function or a class that extends popxl.Module, not"
                f" {type(fn)}."
            )
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ValueError(
                f"The arguments do not match the signature of the function {name}{signature}:"
                f" {error}"
            ) from error
        bound.apply_defaults()
        graph = self.create_empty_graph(name.replace(".<locals>", ""))
        with graph:
            call_args, call_kwargs = _to_inputs(signature, bound)
            _mark_outputs(fn(*call_args, **call_kwargs))
        return graph

    def replica_grouping(self, stride: int = 1, group_size: int | None = None) -> ReplicaGrouping:
        """Groups of ``group_size`` replicas (default: all that the stride allows), ``stride``
        apart; ValueError if they do not tile the replicas."""
        return ReplicaGrouping._strided(self, stride, group_size)

    def replica_grouping_from_assignments(self, assignment: list[int]) -> ReplicaGrouping:
        """The grouping in which replica r belongs to group ``assignment[r]``."""
        return ReplicaGrouping._from_assignment(self, list(assignment))

    def _used_streams(self, kind: str) -> set[Any]:
        return {
            self._streams[op.attrs["stream"]]
            for graph in self._program.graphs.values()
            for op in graph.ops
            if op.kind == kind
        }

    def get_all_d2h_streams(self) -> set[DeviceToHostStream]:
        """Output streams that some op stores to."""
        return self._used_streams("HostStore")

    def get_all_h2d_streams(self) -> set[HostToDeviceStream]:
        """Input streams that some op loads from."""
        return self._used_streams("HostLoad")

    def dot_checkpoint(self, check: str, save_dir: Path | str | None = None) -> None:
        """Write the graphs as they are now to ``<save_dir>/<check>.dot``, if ``check`` is wanted.

        Wanted are the names in the environment's POPART_DOT_CHECKS (separated by colons) or else
        in the session option ``dotChecks``; all, where neither names any.

        Args:
            check: name of the picture.
            save_dir: made if it is not there; default the session option ``logDir``, which it sets.
        """
        options = self._program.options
        if save_dir is not None:
            Path(save_dir).mkdir(parents=True, exist_ok=True)
            options.logDir = str(save_dir)
        if "POPART_DOT_CHECKS" not in os.environ and not options.dotChecks:
            options.dotChecks = {"ALL"}
        named = os.environ.get("POPART_DOT_CHECKS", "").split(":")
        if {"ALL", check.upper()} & {name.upper() for name in (*named, *options.dotChecks)}:
            (Path(options.logDir) / f"{check}.dot").write_text(to_dot(self._program))

    def __hash__(self) -> int:
        return self.id

    def __eq__(self, value: object) -> bool:
        if not isinstance(value, Ir):
            raise TypeError(f"Value must be of type popxl.Ir, not {type(value)}.")
        return self.id == value.id

    def __repr__(self) -> str:
        return f"Ir[id={self.id}]"


def _is_spec(value: Any) -> bool:
    return isinstance(value, Tensor | TensorSpec)


def _new_input(value: Any, name: str, by_ref: bool) -> Tensor:
    return graph_input(value.shape, value.dtype, name, by_ref, value.meta_shape)


def _by_ref_elements(annotation: Any) -> bool:
    """Whether an annotation is List[TensorByRef] or Tuple[TensorByRef] of ``typing``. (quirk) No
    other spelling counts."""
    return annotation in (List[TensorByRef], Tuple[TensorByRef])  # type: ignore[valid-type]


def _has_tensors(values: list[Any], name: str) -> bool:
    specs = [_is_spec(value) for value in values]
    if any(specs) and not all(specs):
        raise TypeError(f"Argument {name!r} can't contain a mixture of Tensors and other values.")
    return bool(specs) and specs[0]


def _to_inputs(
    signature: inspect.Signature, bound: inspect.BoundArguments
) -> tuple[list[Any], dict[str, Any]]:
    """Replace tensors among bound arguments by new inputs of the current graph."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        value = bound.arguments.get(name, inspect.Parameter.empty)
        by_ref = parameter.annotation is TensorByRef
        if parameter.kind is parameter.VAR_POSITIONAL:
            items = list(value)
            if _has_tensors(items, name):
                items = [_new_input(v, f"{name}_{i}", by_ref) for i, v in enumerate(items)]
            args.extend(items)
        elif parameter.kind is parameter.VAR_KEYWORD:
            if _has_tensors(list(value.values()), name):
                value = {key: _new_input(v, key, by_ref) for key, v in value.items()}
            kwargs.update(value)
        else:
            if _is_spec(value):
                value = _new_input(value, name, by_ref)
            elif isinstance(value, list | tuple) and _has_tensors(list(value), name):
                refs = _by_ref_elements(parameter.annotation)
                value = [_new_input(v, f"{name}_{i}", refs) for i, v in enumerate(value)]
            if parameter.kind is parameter.KEYWORD_ONLY:
                kwargs[name] = value
            else:
                args.append(value)
    return args, kwargs


def _mark_outputs(result: Any) -> None:
    message = "Output of subgraph must be None, a Tensor or an iterable of Tensors"
    if result is None:
        return
    if isinstance(result, Tensor):
        graph_output(result)
        return
    if not isinstance(result, Iterable) or not all(isinstance(t, Tensor) for t in result):
        raise ValueError(f"{message}, not {type(result)}.")
    for tensor in result:  # (quirk) a generator is exhausted by the check above
        graph_output(tensor)


__all__ = ["Ir", "get_current_context"]
