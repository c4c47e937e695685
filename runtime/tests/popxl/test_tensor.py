"""Tensors: attributes, identity, Python's protocols, specs."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl.errors import UndefinedValue
from popxl.tensor import Constant, Variable

from runtime.tests.popxl.programs import run


@pytest.mark.parametrize("kind", [popxl.Tensor, Variable, Constant])
def test_constructors(kind: Any):
    with pytest.raises(RuntimeError):
        kind()


def test_attributes(ir: popxl.Ir, main: popxl.Graph):
    w = popxl.variable(np.ones((2, 3), "float16"), name="w")
    assert (w.id, w.name, w.scope) == ("w", "w", "")
    assert (w.dtype, w.shape, w.meta_shape) == (popxl.float16, (2, 3), ())
    assert (w.rank, w.nelms, len(w)) == (2, 6, 2)
    assert w.spec == popxl.TensorSpec((2, 3), popxl.float16, ())
    assert w.ir is ir
    scalar = popxl.constant(1)
    assert (scalar.rank, scalar.nelms, scalar.shape) == (0, 1, ())


def test_strides_are_bytes(main: popxl.Graph):
    w = popxl.variable(np.ones((2, 3, 4), "float16"))
    assert w.strides() == (24, 8, 2)
    assert w.strides((5, 6)) == (12, 2)
    assert popxl.variable(1.0).strides() == ()


def test_kinds_and_repr(main: popxl.Graph):
    w = popxl.variable([1], name="w")
    c = popxl.constant(1.5, name="c")
    y = ops.identity(w)
    assert repr(w) == "Variable[w popxl.dtypes.int32 (1,)]"
    assert repr(c) == "Constant[c popxl.dtypes.float32 ()]"
    assert repr(y) == f"Tensor[{y.id} popxl.dtypes.int32 (1,)]"
    assert type(y) is popxl.Tensor


def test_names_in_sub_graphs(ir: popxl.Ir):
    with ir.create_empty_graph("g") as graph, popxl.name_scope("s"):
        x = popxl.graph_input((), popxl.int32, "x")
    assert x.id == f"{graph.id}/s/x"
    assert x.name == "s/x"
    assert x.scope == graph.id


def test_equality_is_identity(ir: popxl.Ir):
    other = popxl.Ir()
    with ir.main_graph as graph:
        a, b = popxl.variable(1, name="a"), popxl.variable(1, name="b")
        assert (a == graph.get_tensor("a")) is True
        assert (a == b) is False
        assert (a != b) is True
        assert a != 1
        assert a in [b, a]
        assert {a: 1, b: 2}[graph.get_tensor("b")] == 2
    with other.main_graph:
        assert popxl.variable(1, name="a") != a


def test_length_and_truth(main: popxl.Graph):
    assert bool(popxl.variable([0])) is True
    assert len(popxl.variable(np.zeros((3, 1)))) == 3
    scalar = popxl.variable(1)
    with pytest.raises(ValueError, match="scalar"):
        len(scalar)
    with pytest.raises(ValueError, match="scalar"):
        bool(scalar)


def test_no_iteration(main: popxl.Graph):
    x = popxl.variable([1, 2])
    with pytest.raises(TypeError):
        iter(x)
    with pytest.raises(TypeError):
        _, _ = x
    with pytest.raises(TypeError):
        assert 1 in x


def test_no_ordering_and_no_item_assignment(main: popxl.Graph):
    x = popxl.variable([1, 2])
    for compare in (lambda: x < x, lambda: x >= x, lambda: abs(x), lambda: x // x, lambda: x ^ x):
        with pytest.raises(TypeError):
            compare()
    with pytest.raises(TypeError):
        x[0] = 1  # type: ignore[index]


def test_placement(main: popxl.Graph):
    w = popxl.variable([1, 2])
    with pytest.raises(UndefinedValue):
        _ = w.ipu
    with pytest.raises(UndefinedValue):
        _ = w.tile_set
    with popxl.ipu(1), popxl.io_tiles():
        y = w + 1
    assert (y.ipu, y.tile_set) == (1, "io")
    assert y.copy_to_ipu(2).ipu == 2
    assert w.copy_to_ipu(1, 0).ipu == 1
    with pytest.raises(TypeError):
        w.copy_to_ipu(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        popxl.constant(1).copy_to_ipu(1)  # type: ignore[call-arg]


def test_operands_on_different_ipus(main: popxl.Graph):
    w = popxl.variable([1, 2])
    with popxl.ipu(1):
        one = w + 1
    zero = w + 1
    with pytest.raises(ValueError, match="located on different IPUs"):
        ops.add(one, zero)
    with popxl.io_tiles():
        io = w + 1
    with pytest.raises(ValueError, match="located on different tile sets"):
        ops.add(io, zero)
    assert ops.add(w, zero).ipu == 0


def test_methods_are_the_ops(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    values = np.arange(6, dtype="float32").reshape(2, 3)
    x = popxl.variable(values)
    found = run(
        make_session,
        ir,
        x.T,
        x.transpose((1, 0)),
        x.reshape((3, 2)),
        x.flatten(),
        x.detach(),
        x.T_,
        x.reshape_((3, 2)),
        x.flatten_(),
        x.detach_(),
        x.transpose_(),
    )
    flipped, folded, flat = values.T, values.reshape(3, 2), values.reshape(-1)
    wanted = [flipped, flipped, folded, flat, values, flipped, folded, flat, values, flipped]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", ["reshape_", "flatten_", "transpose_", "detach_", "T_"])
def test_aliases_write_through(ir: popxl.Ir, main: popxl.Graph, make_session: Any, method: str):
    x = popxl.variable(np.zeros((2, 2), "float32"))
    found = getattr(x, method)
    arguments = [(4,)] if method == "reshape_" else []
    alias = found if method == "T_" else found(*arguments)
    ops.add_(alias, popxl.constant(np.ones(alias.shape, "float32")))
    (value,) = run(make_session, ir, x)
    np.testing.assert_array_equal(value, np.ones((2, 2)))


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)])
def test_diag(
    ir: popxl.Ir,
    main: popxl.Graph,
    make_session: Any,
    rng: np.random.Generator,
    shape: tuple[int, int],
):
    values = rng.normal(size=shape).astype("float32")
    (found,) = run(make_session, ir, popxl.variable(values).diag())
    # Matrices with more than columns + 1 rows get elements from beyond the diagonal.
    np.testing.assert_array_equal(found, values.reshape(-1)[:: shape[1] + 1])


def test_diag_needs_a_matrix(main: popxl.Graph):
    with pytest.raises(ValueError, match="rank 2"):
        popxl.variable([1, 2]).diag()


def test_in_sync(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    x = popxl.variable(1)
    x += 1
    session = make_session(ir)
    assert x.in_sync_with_ipu
    with session:
        session.run()
        assert not x.in_sync_with_ipu
        session.weights_to_host()
        assert x.in_sync_with_ipu


def test_location(main: popxl.Graph):
    buffer = popxl.remote_buffer((), popxl.int32, 3)
    remote = popxl.remote_variable(1, buffer, 2)
    assert remote.location_info.isRemote()
    assert not remote.location_info.isSharded()
    assert remote.location_info.getRemoteBufferInfo() == (buffer.remote_buffer_id, 2)
    assert not popxl.variable(1).location_info.isRemote()


class TestSpec:
    def test_is_a_mapping(self):
        spec = popxl.TensorSpec((2, 3), popxl.float16, (4, 3))
        assert {**spec} == spec.to_dict()
        assert list(spec) == ["shape", "dtype", "meta_shape"]
        assert spec.to_tuple() == ((2, 3), popxl.float16, (4, 3))
        assert (spec.shape, spec.dtype, spec.meta_shape) == spec.to_tuple()
        assert len(spec) == 3
        assert popxl.TensorSpec((2,), popxl.int32).meta_shape == ()

    def test_repr(self):
        text = repr(popxl.TensorSpec((2,), popxl.float16))
        assert text == "TensorSpec(shape=(2,), dtype=popxl.dtypes.float16, meta_shape=())"

    def test_equality_and_hash(self):
        a, b = (popxl.TensorSpec((2,), popxl.float16) for _ in range(2))
        assert a == b == {"shape": (2,), "dtype": popxl.float16, "meta_shape": ()}
        assert hash(a) == hash(b)
        assert a != popxl.TensorSpec((2,), popxl.float32)
        with pytest.raises(TypeError):
            hash(popxl.TensorSpec([2], popxl.float16))  # type: ignore[arg-type]


def test_wildcard_import_shadows_builtins():
    names: dict[str, Any] = {}
    exec("from popxl import *", names)
    assert names["bool"] is popxl.bool
    assert names["float"] is popxl.float32
    assert "int" not in names
    assert "replica_sharded_buffer" not in popxl.__all__
    assert callable(popxl.replica_sharded_buffer)
