"""``popdist.popart``: session options and device of a distributed launch."""

from __future__ import annotations

import os
from typing import Any

import popart
from popdist._environment import getInstanceIndex, getNumInstances

__all__ = ["configureSessionOptions", "getDevice"]


def configureSessionOptions(options: Any) -> None:
    """Set the replication of this process and of the whole launch in ``options``."""
    total = int(os.environ.get("POPDIST_NUM_TOTAL_REPLICAS", "1"))
    instances = getNumInstances()
    options.enableReplicatedGraphs = total > 1
    options.replicatedGraphCount = total // instances
    options.enableDistributedReplicatedGraphs = instances > 1
    options.globalReplicationFactor = total
    options.globalReplicaOffset = getInstanceIndex() * options.replicatedGraphCount


def getDevice(*args: Any, **kwargs: Any) -> popart.DeviceInfo:
    """The device of this process; arguments of the SDK's device selection are not needed."""
    return popart.DeviceInfo()
