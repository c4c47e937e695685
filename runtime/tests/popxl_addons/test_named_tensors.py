"""Trees of tensors: three orders."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl_addons import NamedTensors
from popxl_addons.named_tensors import print_named_tensors


@pytest.fixture
def tensors(ir: popxl.Ir) -> NamedTensors:
    made = {key: popxl.variable(np.float32(0), name=name) for key, name in [("b", "x"), ("a", "y")]}
    return NamedTensors.from_dict(made)


def test_orders(tensors: NamedTensors):
    assert list(tensors.named_tensors) == ["b", "a"]
    assert [t.name for t in tensors.tensors] == ["x", "y"]
    keys, _ = tensors.unpack()
    assert keys == ("a", "b")
    assert type(tensors.named_tensors) is dict


def test_remap(tensors: NamedTensors):
    other = popxl.constant(0.0)
    mapped = tensors.remap(dict.fromkeys(tensors.tensors, other))
    assert mapped.a is mapped.b is other
    with pytest.raises(KeyError):
        tensors.remap({})


def test_print(tensors: NamedTensors):
    printed = print_named_tensors(tensors)
    assert printed.keys() == ["b", "a"]
    assert printed.a.spec == tensors.a.spec
