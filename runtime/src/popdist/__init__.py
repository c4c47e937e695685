"""Queries of a distributed launch. Without one there is a single instance."""

from popdist import popart
from popdist._environment import getInstanceIndex, getNumInstances, isPopdistEnvSet

__all__ = ["getInstanceIndex", "getNumInstances", "isPopdistEnvSet", "popart"]
