"""A random seed that lives on the device from run to run."""

from __future__ import annotations

import popxl
from popxl import Tensor
from popxl.tensor import Variable

__all__ = ["seed_variable"]


def seed_variable(
    seed: int, replica_grouping: popxl.ReplicaGrouping | None = None
) -> tuple[Variable, Tensor]:
    """Random seeds, (2,) uint32 on each replica, for use in the main graph.

    Args:
        seed: what the seeds are derived from.
        replica_grouping: replicas that share a seed (default: each has its own).

    Returns:
        The variable to read and write from the host, and the tensor to use and to change in
        place. Here they are one: a variable is loaded with the weights, keeps its value across
        runs, and is fetched with the weights.
    """
    if replica_grouping is None:
        replica_grouping = popxl.gcg().ir.replica_grouping(group_size=1)
    seeds = popxl.create_seeds(seed, replicas=replica_grouping.num_groups)
    variable = popxl.variable(seeds, popxl.uint32, "random_seed", replica_grouping=replica_grouping)
    return variable, variable
