"""What a popdist launcher says in the environment of its processes."""

from __future__ import annotations

import os


def isPopdistEnvSet() -> bool:
    """Whether a popdist launcher started this process. It sets the POPDIST_* variables."""
    return "POPDIST_NUM_TOTAL_REPLICAS" in os.environ


def getInstanceIndex() -> int:
    """Index of this process among the instances."""
    return int(os.environ.get("POPDIST_INSTANCE_INDEX", "0"))


def getNumInstances() -> int:
    """Number of processes in the launch."""
    return int(os.environ.get("POPDIST_NUM_INSTANCES", "1"))
