"""The beginning of a safetensors file: a length, and a table of tensors in JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

ALIGNMENT = 64
"""Every tensor that we write begins at a multiple of so many bytes."""

SAFETENSORS_NAMES = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "bool": "BOOL",
    "int64": "I64",
    "int8": "I8",
    "uint8": "U8",
}


def safetensors_header(rows: Mapping[str, Any], alignment: int) -> bytes:
    """The bytes before the data.

    Args:
        rows: name to {"dtype", "shape", "data_offsets"}, offsets counted from the data's beginning;
            ``__metadata__`` to text by text.
        alignment: the data begins at a multiple of so many bytes.
    """
    text = json.dumps(rows).encode()
    text += b" " * (-(len(text) + 8) % alignment)
    return struct.pack("<Q", len(text)) + text
