"""Makes a torchvision that was built for another torch importable.

transformers imports torchvision wherever it is installed. Its wheels are built for CUDA; beside a
CPU torch its operators stay unregistered and the import ends with ``operator torchvision::nms does
not exist``. The reference model uses none of them, so declaring the two names is enough.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_LIBRARIES: list[torch.library.Library] = []  # operators live as long as the library object


def make_torchvision_importable() -> None:
    """Declare torchvision's missing operators; does nothing where it works or is not installed."""
    if _LIBRARIES or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(operator + _BOXES)
        _LIBRARIES.append(library)
