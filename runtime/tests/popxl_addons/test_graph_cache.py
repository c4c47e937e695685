"""Graphs that are made once."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import popxl
import pytest
from popxl_addons import BoundGraph, GraphCache, GraphWithNamedArgs
from popxl_addons.graph_cache import argument_hash, bound_arguments, function, tensor_hash


def scale(x: popxl.Tensor, k: float = 2.0) -> popxl.Tensor:
    return x + x


@pytest.fixture
def x(ir: popxl.Ir) -> popxl.Tensor:
    return popxl.variable(np.zeros(2, "float32"))


def test_equal_arguments_give_one_graph(ir: popxl.Ir, x: popxl.Tensor):
    cache = GraphCache()
    graph = cache.create_graph(scale, x)
    assert cache.create_graph(scale, x.spec) is graph
    assert cache.create_graph(scale, popxl.variable(np.ones(2, "float32"))) is graph
    assert cache.create_graph(scale, popxl.TensorSpec((3,), popxl.float32)) is not graph
    assert cache.create_graph(scale, popxl.TensorSpec((2,), popxl.float16)) is not graph
    assert GraphCache().create_graph(scale, x) is not graph


def test_defaults_are_not_filled_in(ir: popxl.Ir, x: popxl.Tensor):
    cache = GraphCache()
    graphs = {
        cache.create_graph(scale, x),
        cache.create_graph(scale, x, 2.0),
        cache.create_graph(scale, x, k=2.0),
    }
    assert len(graphs) == 3
    assert bound_arguments(scale, 5) == {"args": (5,), "kwargs": {}}


def test_placement_counts(ir: popxl.Ir, x: popxl.Tensor):
    cache = GraphCache()
    with popxl.ipu(0):
        graph = cache.create_graph(scale, x)
    with popxl.ipu(1):
        assert cache.create_graph(scale, x) is not graph
    with popxl.io_tiles():
        assert cache.create_graph(scale, x) is not graph


def test_each_program_has_its_own_graphs():
    cache, spec, graphs = GraphCache(), popxl.TensorSpec((2,), popxl.float32), []
    programs = [popxl.Ir(), popxl.Ir()]
    for ir in (*programs, programs[0]):
        with ir.main_graph:
            graphs.append(cache.create_graph(scale, spec))
    assert graphs[1].ir == programs[1]
    assert graphs[2] is graphs[0]


def test_a_cache_keeps_no_program_alive():
    cache = GraphCache()

    def graph_of_a_program() -> weakref.ref[popxl.Graph]:
        other = popxl.Ir()
        with other.main_graph:
            spec = popxl.TensorSpec((2,), popxl.float32)
            graph = weakref.ref(cache.create_graph(scale, spec))
            gc.collect()
            assert cache.create_graph(scale, spec) is graph()  # while the program lives
        return graph

    graph = graph_of_a_program()
    gc.collect()
    assert graph() is None


def test_containers_and_graphs_are_hashed_by_content(ir: popxl.Ir, x: popxl.Tensor):
    graph = GraphWithNamedArgs(ir.create_graph(scale, x))
    y = popxl.variable(np.ones(2, "float32"))
    assert argument_hash([x, (1, {"a": y})]) == argument_hash([y, (1, {"a": x})])
    assert argument_hash({"a": 1, "b": 2}) != argument_hash({"b": 2, "a": 1})
    assert argument_hash(graph) == argument_hash(GraphWithNamedArgs(graph.graph))
    key = graph.graph.inputs[0]
    assert argument_hash(BoundGraph(graph.graph, {key: x})) != argument_hash(
        BoundGraph(graph.graph, {key: y})
    )
    assert tensor_hash(x) == tensor_hash(y.spec)
    with pytest.raises(TypeError):
        argument_hash({1, 2})


def test_function_calls_one_graph(ir: popxl.Ir, x: popxl.Tensor):
    double = function(scale)
    (a,) = double(x)
    (b,) = double(a)
    assert b.shape == (2,)
    assert len(ir.main_graph.called_graphs) == 1
    assert double.__name__ == "scale"
