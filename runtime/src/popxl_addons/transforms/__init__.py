"""Transforms of graphs."""

from popxl_addons.graph import BoundGraph, GraphWithNamedArgs
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
from popxl_addons.utils import suffix_graph_name

__all__ = [
    "BoundGraph",
    "GraphWithNamedArgs",
    "RemoteHandle",
    "add_recompute_inputs",
    "autodiff",
    "autodiff_with_accumulation",
    "available_memory_proportion",
    "batch_serial_buffer",
    "batch_serialisation",
    "batch_serialise",
    "batch_serialise_fwd_and_grad",
    "disable_fc_pass",
    "enable_fc_pass",
    "pipelined_execution",
    "pipelining",
    "recomputation",
    "recompute_graph",
    "set_available_memory_proportion_by_ipu",
    "set_graph_available_memory_proportion_by_ipu",
    "suffix_graph_name",
    "use_fc_pass",
]
