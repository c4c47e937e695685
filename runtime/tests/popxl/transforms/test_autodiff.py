"""The names of the transforms that are still to be built say so when they are used."""

from __future__ import annotations

import popxl
import pytest
from popxl.transforms import ExpectedConnection, GradGraphInfo, autodiff, decompose_sum

from runtime.tests.popxl.ops.op_testing import main_graph


def test_transforms_name_themselves():
    with main_graph() as graph:
        with pytest.raises(NotImplementedError, match=r"popxl\.transforms\.autodiff"):
            autodiff(graph)
        with pytest.raises(NotImplementedError, match=r"popxl\.transforms\.decompose_sum"):
            decompose_sum(graph)


@pytest.mark.parametrize("kind", [ExpectedConnection, GradGraphInfo])
def test_records_are_made_by_autodiff_only(kind: type):
    with pytest.raises(TypeError):
        kind()


def test_connection_types():
    names = popxl.transforms.ExpectedConnectionType.__members__
    assert list(names) == ["Fwd", "FwdGrad"]
