"""Factories: how often data are drawn, shapes, groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import popxl
import pytest
from popxl_addons import NamedVariableFactories, VariableFactory, named_variable_buffers
from popxl_addons._initialisers import LazyInitialiser
from popxl_addons.variable_factory import add_replica_sharded_variable_input, add_variable_input


class Counting:
    """Arrays of 1, 2, 3, ... that count the calls."""

    def __init__(self, shape: tuple[int, ...] = (2,), dtype: str = "float32") -> None:
        self.calls = 0
        self.shape_ = shape
        self.dtype_ = dtype

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return np.full(self.shape_, self.calls, self.dtype_)


class NeverDrawn(LazyInitialiser):
    """A lazy initialiser that must not be called."""

    def __call__(self) -> np.ndarray:
        raise AssertionError("drawn")


def test_a_callable_is_called_twice_and_the_second_result_is_used_first(ir: popxl.Ir):
    draw = Counting()
    factory = VariableFactory(draw, name="w")
    assert draw.calls == 2
    assert [factory.next_data()[0] for _ in range(3)] == [2, 3, 4]
    assert (factory.shape, factory.dtype, factory.meta_shape) == ((2,), popxl.float32, None)


def test_data_types_are_taken_as_they_are(ir: popxl.Ir):
    assert VariableFactory(Counting(dtype="float64")).dtype == popxl.float64
    assert VariableFactory(Counting(dtype="float64"), popxl.float16).dtype == popxl.float16
    assert VariableFactory(iter(np.arange(3))).shape == ()


def test_iterators_are_consumed(ir: popxl.Ir):
    factory = VariableFactory(iter([np.zeros(1), np.ones(1)]))
    assert [factory.next_data()[0] for _ in range(2)] == [0, 1]
    with pytest.raises(StopIteration):
        factory.next_data()


def test_unusable_data(ir: popxl.Ir):
    with pytest.raises(ValueError, match="failed: division by zero") as error:
        VariableFactory(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    with pytest.raises(ValueError, match="callable or an iterable"):
        VariableFactory(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="arrays or numbers, got object"):
        VariableFactory(lambda: object())  # type: ignore[arg-type, return-value]
    with pytest.raises(AttributeError):
        VariableFactory(lambda: 1.0)


def test_groups_take_one_element_each(ir4: popxl.Ir):
    group = ir4.replica_grouping(group_size=2)
    factory = VariableFactory(iter(np.arange(2, dtype="int32")), replica_grouping=group)
    np.testing.assert_array_equal(factory.next_data(), [0, 1])
    assert factory.shape == ()
    everyone = VariableFactory(Counting())
    assert everyone.replica_grouping == ir4.replica_grouping()
    assert everyone.next_data().shape == (2,)


def test_empty_data_are_not_drawn_nor_allocated(ir4: popxl.Ir):
    shape = (1 << 20, 1 << 20)
    group = ir4.replica_grouping(group_size=2)
    factory = VariableFactory(NeverDrawn(shape), popxl.float16, "w", replica_grouping=group)
    data = factory.next_data(empty=True)
    assert (data.shape, data.dtype) == ((2, *shape), np.float16)
    variable = factory.create_tensor(empty=True)
    assert variable.shape == shape
    assert variable.shape_on_host == (2, *shape)
    draw = Counting()
    VariableFactory(draw).next_data(empty=True)
    assert draw.calls == 2


def test_sharded_factories(ir4: popxl.Ir):
    factory = VariableFactory(Counting((2, 6)), shard_over=4)
    assert (factory.shape, factory.meta_shape, factory.replica_sharded) == ((3,), (2, 6), True)
    tensor = factory.create_input()
    assert (tensor.shape, tensor.meta_shape) == ((3,), (2, 6))
    assert factory.create_tensor().shape == (2, 6)
    with pytest.raises(AssertionError, match="8 shards in a group of 4"):
        VariableFactory(Counting(), shard_over=8)


def test_inputs(ir4: popxl.Ir):
    tensor, factory = add_variable_input("w", Counting(), by_ref=True)
    assert (tensor.name, tensor.shape) == ("w", (2,))
    assert tensor in popxl.gcg()._by_ref_inputs
    assert factory.create_input("layer").name == "layer.w"
    tensor, factory = add_replica_sharded_variable_input("s", Counting((8,)))
    assert (tensor.shape, tensor.meta_shape) == ((2,), (8,))


def draws(values: list[int]) -> Iterator[np.ndarray]:
    return iter([np.array([v], "int32") for v in values])


def named(log: list[str]) -> NamedVariableFactories:
    def draw(name: str) -> np.ndarray:
        log.append(name)
        return np.zeros(1, "float32")

    return NamedVariableFactories.from_dict(
        {key: VariableFactory(lambda k=key: draw(k), name=key) for key in ("b", "a.x", "10", "2")}
    )


def test_variables_are_drawn_in_the_order_of_their_keys(ir: popxl.Ir):
    log: list[str] = []
    factories = named(log)
    log.clear()
    variables = factories.init("p")
    assert list(variables.named_tensors) == ["10", "2", "a.x", "b"]
    assert [t.name for t in variables.named_tensors.values()] == ["p.10", "p.2", "p.a.x", "p.b"]
    # The first data were seen at construction.
    assert log == []
    factories.init()
    assert log == ["10", "2", "a.x", "b"]


def test_remote_variables(ir4: popxl.Ir):
    factories = named([])
    buffers = named_variable_buffers(factories, entries=3, shard_over_dict=False)
    variables = factories.init_remote(buffers, 2, "layer")
    assert variables["a.x"].name == "layer.a.x"
    assert variables["a.x"].location_info.isRemote()
    buffers.pop("a.x")
    with pytest.raises(KeyError):
        factories.init_remote(buffers)


def test_zero_and_undefined_tensors(ir4: popxl.Ir):
    factories = NamedVariableFactories(
        b=VariableFactory(Counting((4, 2)), popxl.float16, shard_over=4),
        a=VariableFactory(Counting()),
    )
    for tensors in (factories.init_zero(), factories.init_undef()):
        assert list(tensors.named_tensors) == ["b", "a"]
        assert (tensors.b.shape, tensors.b.dtype) == ((2,), popxl.float16)
        assert tensors.b.meta_shape == ()
        assert tensors.a.name.startswith("a")


def test_replica_groupings_are_a_new_tree(ir4: popxl.Ir):
    factories = named([])
    groups = factories.replica_groupings
    assert groups.keys_flat() == factories.keys_flat()
    groups.pop("b")
    assert "b" in factories.replica_groupings


def test_memory_maps(tmp_path: Path, ir4: popxl.Ir):
    group = ir4.replica_grouping(group_size=2)
    folder = str(tmp_path / "maps")
    factory = VariableFactory(draws([5, 6, 7]), name="w", replica_grouping=group)
    variable = factory.create_tensor(memmap_dir=folder)
    assert variable.shape_on_host == (2, 1)
    raw = np.fromfile(tmp_path / "maps" / "w.npy", "int32")
    np.testing.assert_array_equal(raw, [5, 6])
    again = factory.next_memmap(folder, "w", read_only_if_exists=True)
    assert (again.shape, again.mode) == ((2, 1), "r")
    assert factory.next_memmap(folder, "w").mode == "r+"
    empty = VariableFactory(NeverDrawn((3,)), popxl.float32, "e")
    assert empty.next_memmap(folder, "e", empty=True).shape == (3,)
