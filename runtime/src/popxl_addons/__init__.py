"""Modules with named variables, and what programs build from them, on public popxl.

Explicit exports, in the order in which later ones hide earlier submodules of the same name:
`popxl_addons.autodiff` and `popxl_addons.seed_variable` are functions.
"""

from __future__ import annotations

import popxl
from popxl import dtypes
from popxl_addons import (
    array_munging,
    debugging,
    dot_tree,
    graph,
    graph_cache,
    graph_common,
    module,
    named_replica_grouping,
    named_tensors,
    ops,
    performance_utils,
    remote,
    route_tensor,
    rts,
    streams,
    task_session,
    transforms,
    utils,
    variable_factory,
)
from popxl_addons.array_munging import (
    handle_negative_axis,
    pad_axis,
    repeat,
    repeat_axis,
    repeat_shard,
    shard,
    shard2D,
    split2D,
    squeeze_safe,
    tensor_parallel_input,
    unshard,
    unshard2D,
    unshard_arrays,
)
from popxl_addons.debugging import print_tensor, print_text
from popxl_addons.graph import BoundGraph, GraphWithNamedArgs
from popxl_addons.graph_cache import (
    GraphCache,
    argument_hash,
    bound_arguments,
    function,
    get_function_hash,
    tensor_hash,
)
from popxl_addons.graph_common import (
    CalledGraphsGradInfo,
    CalledGraphsGradInfoLike,
    GradGraphInfoLike,
    GraphLike,
)
from popxl_addons.module import Module, NameScopeMeta, create_grad_graph_info
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.ops import fp8_utils, replicated_strided_collectives
from popxl_addons.ops.cross_entropy import cross_entropy, cross_entropy_with_grad
from popxl_addons.ops.fp8_amax_scale import fp8_amax_scale
from popxl_addons.ops.streams import host_load, host_store
from popxl_addons.performance_utils import (
    evaluate_FLOPs,
    evaluate_ir_FLOPs,
    format_flops_scientific,
    print_FLOPs,
    total_FLOPs,
)
from popxl_addons.remote import (
    create_remote_buffer,
    load_remote_graph,
    named_buffers,
    named_variable_buffers,
    store_remote_graph,
)
from popxl_addons.route_tensor import is_subgraph, route_tensor_into_graph
from popxl_addons.seed_variable import seed_variable
from popxl_addons.streams import InputStreams, OutputStreams
from popxl_addons.task_session import TaskSession, write_variables_pb
from popxl_addons.transforms import (
    available_memory_proportion,
    batch_serialisation,
    pipelining,
    recomputation,
    use_fc_pass,
)
from popxl_addons.transforms.autodiff import autodiff, autodiff_with_accumulation
from popxl_addons.transforms.available_memory_proportion import (
    set_available_memory_proportion_by_ipu,
    set_graph_available_memory_proportion_by_ipu,
)
from popxl_addons.transforms.batch_serialisation import (
    RemoteHandle,
    batch_serial_buffer,
    batch_serialise,
    batch_serialise_fwd_and_grad,
)
from popxl_addons.transforms.pipelining import pipelined_execution
from popxl_addons.transforms.recomputation import add_recompute_inputs, recompute_graph
from popxl_addons.transforms.use_fc_pass import disable_fc_pass, enable_fc_pass
from popxl_addons.utils import (
    OrderedDict,
    WeightsDict,
    duplicate_items,
    overrides,
    suffix_graph_name,
    timer,
)
from popxl_addons.variable_factory import (
    NamedVariableFactories,
    VariableFactory,
    add_replica_sharded_variable_input,
    add_variable_input,
)

# Made by __getattr__ below.
GIT_COMMIT: str | None

__all__ = [
    "GIT_COMMIT",
    "BoundGraph",
    "CalledGraphsGradInfo",
    "CalledGraphsGradInfoLike",
    "GradGraphInfoLike",
    "GraphCache",
    "GraphLike",
    "GraphWithNamedArgs",
    "InputStreams",
    "Module",
    "NameScopeMeta",
    "NamedTensors",
    "NamedVariableFactories",
    "OrderedDict",
    "OutputStreams",
    "RemoteHandle",
    "TaskSession",
    "VariableFactory",
    "WeightsDict",
    "add_recompute_inputs",
    "add_replica_sharded_variable_input",
    "add_variable_input",
    "argument_hash",
    "array_munging",
    "autodiff",
    "autodiff_with_accumulation",
    "available_memory_proportion",
    "batch_serial_buffer",
    "batch_serialisation",
    "batch_serialise",
    "batch_serialise_fwd_and_grad",
    "bound_arguments",
    "create_grad_graph_info",
    "create_remote_buffer",
    "cross_entropy",
    "cross_entropy_with_grad",
    "debugging",
    "disable_fc_pass",
    "dot_tree",
    "dtypes",
    "duplicate_items",
    "enable_fc_pass",
    "evaluate_FLOPs",
    "evaluate_ir_FLOPs",
    "format_flops_scientific",
    "fp8_amax_scale",
    "fp8_utils",
    "function",
    "get_function_hash",
    "graph",
    "graph_cache",
    "graph_common",
    "handle_negative_axis",
    "host_load",
    "host_store",
    "is_subgraph",
    "load_remote_graph",
    "module",
    "named_buffers",
    "named_replica_grouping",
    "named_tensors",
    "named_variable_buffers",
    "ops",
    "overrides",
    "pad_axis",
    "performance_utils",
    "pipelined_execution",
    "pipelining",
    "popxl",
    "print_FLOPs",
    "print_tensor",
    "print_text",
    "recomputation",
    "recompute_graph",
    "remote",
    "repeat",
    "repeat_axis",
    "repeat_shard",
    "replicated_strided_collectives",
    "route_tensor",
    "route_tensor_into_graph",
    "rts",
    "seed_variable",
    "set_available_memory_proportion_by_ipu",
    "set_graph_available_memory_proportion_by_ipu",
    "shard",
    "shard2D",
    "split2D",
    "squeeze_safe",
    "store_remote_graph",
    "streams",
    "suffix_graph_name",
    "task_session",
    "tensor_hash",
    "tensor_parallel_input",
    "timer",
    "total_FLOPs",
    "transforms",
    "unshard",
    "unshard2D",
    "unshard_arrays",
    "use_fc_pass",
    "utils",
    "variable_factory",
    "write_variables_pb",
]


def __getattr__(name: str) -> str | None:
    if name == "GIT_COMMIT":
        # Found on first use: import does no work.
        from popxl_addons._git import git_commit

        return git_commit()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
