"""Small helpers."""

from __future__ import annotations

import popxl
import popxl.ops.utils as op_utils
import pytest
from popxl.typing_ import NewAliasAnnotation
from popxl.utils import HW_DEVICE_CONNECTION_TIMEOUT, table_to_string


def test_table():
    rows = [["a", "bcd"], ["efgh", 1], [None, ""]]
    lines = ["a    | bcd", "-" * len("a    | bcd\n"), "efgh | 1  ", "None |    "]
    assert table_to_string(rows) == "".join(line + "\n" for line in lines)


def test_table_without_header_or_rows():
    assert table_to_string([["a", "b"], ["c", "d"]], header=False) == "a | b\nc | d\n"
    assert table_to_string([["a", "b"]], delimiter=",") == "a,b\n"
    assert table_to_string([]) == ""


def test_timeout():
    assert HW_DEVICE_CONNECTION_TIMEOUT == 10000


def test_negative_axes(main: popxl.Graph):
    t = popxl.variable([[1.0]])
    assert [op_utils.handle_negative_axis(t, axis) for axis in (-2, -1, 0, 1)] == [0, 1, 0, 1]
    assert op_utils.handle_negative_axis(t, 9) == 9


def test_cast_if_needed(main: popxl.Graph):
    t = popxl.variable([1.0])
    assert op_utils.cast_if_needed(t, popxl.float32) is t
    assert op_utils.cast_if_needed(t, popxl.int32).dtype is popxl.int32


def test_optional_values():
    assert op_utils.convert_optional_float(None) is None
    assert op_utils.convert_optional_int(None) is None
    assert op_utils.convert_optional_int64_list(None) is None
    assert op_utils.convert_optional_dtype(None) is None


def test_check_in_graph(ir: popxl.Ir, main: popxl.Graph):
    t = popxl.variable(1)
    op_utils.check_in_graph(main, t, other=t)
    with pytest.raises(TypeError, match="The input `number` is not a Tensor"):
        op_utils.check_in_graph(main, t, number=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="The input tensor `foreign` is not in the current Graph"):
        op_utils.check_in_graph(ir.create_empty_graph(), foreign=t)


def test_annotations_are_unique():
    one, other = (NewAliasAnnotation("Name", int) for _ in range(2))
    assert one is not other
    assert one.__name__ == "Name"
    with pytest.raises(NotImplementedError):
        one()
