"""Session options as PopXL programs read and write them."""

from __future__ import annotations

from typing import Any

from popart._types import SyntheticDataMode, VirtualGraphMode

_DEFAULTS: dict[str, Any] = {
    # honoured by the engine
    "partialsTypeMatMuls": "",
    "enableReplicatedGraphs": False,
    "replicatedGraphCount": 1,
    "enableDistributedReplicatedGraphs": False,
    "globalReplicationFactor": 1,
    "globalReplicaOffset": 0,
    "enableInplaceAmbiguityChecking": True,
    "enableStochasticRounding": False,
    "throwIfLog2ScaleTensorNotInRange": True,
    "enableEngineCaching": False,
    "cachePath": "",
    "engineOptions": dict,
    # accepted: they place memory or tune an IPU and change no result
    "numIOTiles": 0,
    "reportOptions": dict,
    "convolutionOptions": dict,
    "matmulOptions": dict,
    "gclOptions": dict,
    "lstmOptions": dict,
    "enableFloatingPointChecks": False,
    "aliasZeroCopy": True,
    "constantWeights": True,
    "enableVariablesCaching": False,
    "virtualGraphMode": VirtualGraphMode.Manual,
    "useHostCopyOps": True,
    "enableExplicitMainLoops": True,
    "explicitRecomputation": True,
    "decomposeGradSum": True,
    "bufferingDepthMap": dict,
    "defaultBufferingDepth": 1,
    "enablePrefetchDatastreams": True,
    "enableStableNorm": False,
    "groupNormStridedChannelGrouping": False,
    "enableNonStableSoftmax": False,
    "ensureFp32LossScaleTensor": False,
    "useLoopCandidateCreator": False,
    "dotChecks": set,
    "logDir": "",
    "firstDotOp": 0,
    "finalDotOp": 10000,
    "dotOpNames": True,
    "syntheticDataMode": SyntheticDataMode.Off,
    "compileEngine": True,
    "hardwareInstrumentations": set,
    "timeLimitScheduler": 1e9,
    "swapLimitScheduler": -1,
    "kahnTieBreaker": "greedy",
    "enableMergeExchange": True,
    "customCodelets": list,
    "exportPoplarComputationGraph": False,
    "replicatedCollectivesSettings": dict,
    "experimentalSettings": dict,
    "weightTensorLocationSettings": None,
    "activationTensorLocationSettings": None,
    "optimizerStateTensorLocationSettings": None,
    "accumulatorTensorLocationSettings": None,
}


class SessionOptions:
    """A live set of options.

    Options that are not in the table can be set as well: they tune an IPU, and programs that set
    them shall run. One that was never set raises AttributeError when it is read, as under the SDK.
    """

    def __init__(self) -> None:
        for name, default in _DEFAULTS.items():
            setattr(self, name, default() if isinstance(default, type) else default)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"SessionOptions has no option {name!r}")
