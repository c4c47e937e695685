"""Gradients of addons' graphs: accumulation, recomputation, gradients written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import popxl
import popxl_addons as addons
import pytest
import torch
from popart import popart_exception
from popxl import ops
from popxl.transforms import ExpectedConnectionType, GradGraphInfo
from popxl_addons import GraphWithNamedArgs, Module
from popxl_addons.module import OrderedDict, create_grad_graph_info
from popxl_addons.named_replica_grouping import NamedReplicaGrouping
from popxl_addons.transforms.autodiff import remap_grad_info

RTOL = 1e-5

Fwd, FwdGrad = ExpectedConnectionType.Fwd, ExpectedConnectionType.FwdGrad


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture(autouse=True)
def ordered() -> Iterator[None]:
    with popxl.in_sequence():
        yield


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


class Dense(Module):
    """tanh(x w + b)."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.weight = weight

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        w = self.add_variable_input("w", lambda: self.weight)
        b = self.add_variable_input("b", lambda: np.zeros(self.weight.shape[1], np.float32))
        return ops.tanh(x @ w + b)


class Written(Module):
    """x * w with a gradient of its own, twice the real one."""

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        w = self.add_variable_input("w", lambda: np.full(x.shape, 3.0, np.float32))
        self.aux["x"], self.aux["factor"], self.aux["weight"] = x, 2.0, w
        self.aux["unread"] = y = x * w
        return y + 0.0

    def build_grad(self, dy: popxl.Tensor) -> popxl.Tensor:
        dy = dy * self.aux["factor"]
        self.var_grad["w"] = dy * self.aux["x"]
        return dy * self.aux["weight"]


def call_both(
    graph: GraphWithNamedArgs, grad: GraphWithNamedArgs, args: addons.NamedTensors, x: popxl.Tensor
) -> tuple[popxl.Tensor, tuple[popxl.Tensor, ...]]:
    """(first output, gradients for an upstream gradient of 1)."""
    info = graph.bind(args).call_with_info(x)
    y = info.outputs[0]
    dy = ops.init(y.shape, y.dtype) + 1.0
    return y, grad.call(dy, args=grad.grad_graph_info.inputs_dict(info))


def reference(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of the sum of tanh(x w + b) by x, w and b, at b = 0."""
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, w, np.zeros(w.shape[1], "f4"))]
    total = torch.tanh(tensors[0] @ tensors[1] + tensors[2]).sum()
    dx, dw, db = (g.numpy() for g in torch.autograd.grad(total, tensors))
    return dx, dw, db


def test_gradients_of_a_module(ir: popxl.Ir, run: Callable, rng: np.random.Generator):
    data, weight = normal(rng, 3, 4), normal(rng, 4, 5)
    x = popxl.variable(data)
    factories, graph = Dense(weight).create_graph(x)
    grad = graph.autodiff()
    assert graph.autodiff_applied
    with pytest.raises(RuntimeError, match="already been applied"):
        graph.autodiff()
    assert graph.autodiff(force=True).graph.name != grad.graph.name
    _, grads = call_both(graph, grad, factories.init(), x)
    for found, wanted in zip(run(list(grads)), reference(data, weight), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=RTOL, atol=1e-6)


def test_plain_graphs_are_accepted(ir: popxl.Ir):
    x = popxl.variable(np.ones(2, "float32"))
    graph = ir.create_graph(lambda x: ops.exp(x), x)
    grad = addons.autodiff(graph)
    assert isinstance(grad, GraphWithNamedArgs)
    assert grad.grad_graph_info.forward_graph == graph
    assert grad.args.keys_flat() == []


def test_accumulation_keeps_the_mean(ir: popxl.Ir, run: Callable, rng: np.random.Generator):
    batches, weight = [normal(rng, 3, 4) for _ in range(3)], normal(rng, 4, 5)
    inputs = [popxl.variable(batch) for batch in batches]
    factories, graph = Dense(weight).create_graph(inputs[0])
    accumulators, grad = addons.autodiff_with_accumulation(
        graph, graph.args.tensors, grads_required=[graph.graph.inputs[0]]
    )
    assert sorted(accumulators.keys_flat()) == ["accum.b", "accum.w", "mean_accum_counter"]
    assert grad.args.keys_flat() == accumulators.keys_flat()
    assert len(grad.graph.outputs) == 1
    assert all(t in grad.graph._by_ref_inputs for t in grad.args.to_dict().values())
    args, state = factories.init(), accumulators.init()
    found = []
    for x in inputs:
        info = graph.bind(args).call_with_info(x)
        dy = ops.init(info.outputs[0].shape, popxl.float32) + 1.0
        given = grad.grad_graph_info.inputs_dict(info)
        found += grad.bind(state).call(dy, args=given)
    results = run([*found, state.accum.w, state.accum.b, state.mean_accum_counter])
    wanted = [reference(batch, weight) for batch in batches]
    for dx, (expected, _, _) in zip(results, wanted, strict=False):
        np.testing.assert_allclose(dx, expected, rtol=RTOL, atol=1e-6)
    for position, result in ((1, results[-3]), (2, results[-2])):
        mean = np.mean([grads[position] for grads in wanted], axis=0)
        np.testing.assert_allclose(result, mean, rtol=RTOL, atol=1e-6)
    assert results[-1] == 3


def test_accumulators_of_other_tensors_and_groupings(ir4: popxl.Ir, rng: np.random.Generator):
    x = popxl.variable(normal(rng, 3, 4))
    _, graph = Dense(normal(rng, 4, 5)).create_graph(x)
    alone = ir4.replica_grouping(group_size=1)
    groupings = NamedReplicaGrouping(w=alone)
    accumulators, grad = addons.autodiff_with_accumulation(
        graph,
        [graph.graph.inputs[0], graph.args.w],
        replica_groupings=groupings,
    )
    assert sorted(accumulators.keys_flat()) == ["accum.w", "accum.x", "mean_accum_counter"]
    assert grad.graph.outputs == ()
    assert accumulators.accum.w.replica_grouping == alone
    assert accumulators.accum.x.replica_grouping == ir4.replica_grouping()


def test_recomputation(ir: popxl.Ir, run: Callable, rng: np.random.Generator):
    data, weight = normal(rng, 3, 4), normal(rng, 4, 5)
    x = popxl.variable(data)
    factories, graph = Dense(weight).create_graph(x)
    accumulators, grad = addons.autodiff_with_accumulation(
        graph, graph.args.tensors, grads_required=[graph.graph.inputs[0]]
    )
    again = addons.recompute_graph(grad)
    assert again.graph.name.startswith("Dense_bwd_recomp")
    connections = again.grad_graph_info.expected_inputs
    assert [c.connection_type for c in connections] == [FwdGrad, Fwd, Fwd, Fwd]
    assert {c.fwd_tensor for c in connections[1:]} == set(graph.graph.inputs)
    assert again.args.keys_flat() == grad.args.keys_flat()
    state, args = accumulators.init(), factories.init()
    info = graph.bind(args).call_with_info(x)
    dy = ops.init(info.outputs[0].shape, popxl.float32) + 1.0
    given = again.grad_graph_info.inputs_dict(info)
    assert set(given.values()) == {x, args.w, args.b}
    (dx,) = again.bind(state).call(dy, args=given)
    results = run([dx, state.accum.w, state.accum.b])
    for found, wanted in zip(results, reference(data, weight), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=RTOL, atol=1e-6)


def test_recomputation_needs_gradient_information(ir: popxl.Ir):
    graph = ir.create_graph(lambda x: ops.exp(x), popxl.variable(np.ones(2, "float32")))
    with pytest.raises(AttributeError, match="no grad_graph_info"):
        addons.recompute_graph(GraphWithNamedArgs(graph))


def test_information_for_other_graphs(ir: popxl.Ir):
    x = popxl.variable(np.ones(2, "float32"))
    graph = ir.create_graph(lambda x: ops.exp(ops.sin(x)), x)
    info = addons.autodiff(graph).grad_graph_info
    other = ir.create_graph(lambda x: (ops.exp(ops.sin(x)), x + 1.0), x)
    moved = remap_grad_info(info, other, info.graph)
    assert moved.forward_graph == other
    types = [c.connection_type for c in info.expected_inputs]
    assert [c.connection_type for c in moved.expected_inputs] == types
    positions = [graph.outputs.index(t) for t in info.inputs if t in graph.outputs]
    assert [other.outputs.index(t) for t in moved.inputs if t in other.outputs] == positions
    assert moved.outputs == other.inputs


# -- gradients written by hand --------------------------------------------------------------------


def test_a_written_gradient(ir: popxl.Ir, run: Callable, rng: np.random.Generator):
    data = normal(rng, 4)
    x = popxl.variable(data)
    factories, graph = Written().create_graph(x)
    grad = graph.autodiff()
    names = [t.name for t in graph.graph.outputs]
    assert names[1:] == ["x", "w", "mul_out"]
    info = grad.grad_graph_info
    assert [c.connection_type for c in info.expected_inputs] == [FwdGrad, Fwd, Fwd]
    assert [t.name for t in grad.graph.inputs] == ["dy", "x", "weight"]
    assert info.outputs == graph.graph.inputs
    y, (dx, dw) = call_both(graph, grad, factories.init(), x)
    results = run([y, dx, dw])
    for found, wanted in zip(results, (3 * data, np.full(4, 6.0), 2 * data), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=RTOL)


def test_required_gradients_are_paired_whatever_their_order(ir: popxl.Ir):
    x = popxl.variable(np.ones(2, "float32"))
    _, graph = Written().create_graph(x)
    first, second = graph.graph.inputs
    grad = graph.autodiff(grads_required=[second, first])
    assert grad.grad_graph_info.outputs == (first, second)


def test_unneeded_gradients_of_variables_are_dropped(ir: popxl.Ir):
    _, graph = Written().create_graph(popxl.variable(np.ones(2, "float32")))
    grad = graph.autodiff(grads_required=[graph.graph.inputs[0]])
    assert len(grad.graph.outputs) == 1


def _module(build_grad: Callable) -> Module:
    return type("Own", (Written,), {"build_grad": build_grad})()


@pytest.mark.parametrize(
    ("build_grad", "error", "text"),
    [
        (lambda self, *dys: dys[0], TypeError, "must only have a fixed number of positional"),
        (lambda self, dy, *, k=1: dy, TypeError, "must only have a fixed number of positional"),
        (lambda self, dy: dy, ValueError, "Not all variable gradients have been specified"),
        (lambda self, dy: (dy, dy), ValueError, "Too many outputs in the grad graph"),
        (lambda self, dy: (), ValueError, "Not all forward graph inputs have been specified"),
        (lambda self, dy: dy.reshape((2, 1)), ValueError, "output Tensor at position 0"),
        (lambda self: None, ValueError, "do not match the signature"),
    ],
)
def test_written_gradients_are_checked(
    ir: popxl.Ir, build_grad: Callable, error: type[Exception], text: str
):
    module = _module(build_grad)
    _, graph = module.create_graph(popxl.variable(np.ones(2, "float32")))
    with pytest.raises(error, match=text):
        graph.autodiff()


def test_tensors_are_checked(ir: popxl.Ir):
    module = Written()
    _, graph = module.create_graph(popxl.variable(np.ones(2, "float32")))
    x, y = graph.graph.inputs[0], graph.graph.outputs[0]
    with pytest.raises(ValueError, match="`grads_provided` is not a output of `fwd_graph`"):
        module.create_grad_graph(graph, grads_provided=[x])
    with pytest.raises(ValueError, match="`grads_required` is not a input of `fwd_graph`"):
        module.create_grad_graph(graph, grads_required=[y])
    with pytest.raises(ValueError, match="twice"):
        module.create_grad_graph(graph, grads_required=[x, x])


def test_information_from_mappings(ir: popxl.Ir):
    x = popxl.variable(np.ones(2, "float32"))
    forward = ir.create_graph(lambda x: ops.exp(x), x)
    backward = ir.create_graph(lambda dy, y: dy * y, x, x)
    y = forward.outputs[0]
    info = create_grad_graph_info(
        ir,
        forward,
        backward,
        OrderedDict(zip(backward.inputs, (y, y), strict=True)),
        OrderedDict({backward.outputs[0]: forward.inputs[0]}),
        {y},
    )
    assert isinstance(info, GradGraphInfo)
    assert [c.connection_type for c in info.expected_inputs] == [Fwd, Fwd]
    assert info.outputs == forward.inputs


class Outer(Module):
    """Calls a module that has a gradient of its own."""

    def __init__(self, how: str = "auto") -> None:
        super().__init__()
        self.how = how

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        (y,) = self.call_module(Written(), "inner", self.how)(x)
        return y * 5.0


def test_a_called_module_brings_its_gradient(ir: popxl.Ir, run: Callable, rng: np.random.Generator):
    data = normal(rng, 4)
    x = popxl.variable(data)
    factories, graph = Outer().create_graph(x)
    assert len(graph.called_graphs_grad_info) == 1
    grad = graph.autodiff()
    _, (dx, dw) = call_both(graph, grad, factories.init(), x)
    results = run([dx, dw])
    for found, wanted in zip(results, (np.full(4, 30.0), 10 * data), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=RTOL)


def test_without_its_gradient_a_called_module_is_refused(ir: popxl.Ir):
    _, graph = Outer("none").create_graph(popxl.variable(np.ones(2, "float32")))
    with pytest.raises(popart_exception, match="marked as unsafe to autodiff"):
        graph.autodiff()


def test_gradients_of_called_graphs_can_be_given(ir: popxl.Ir, run: Callable):
    x = popxl.variable(np.full(2, 2.0, "float32"))
    _, inner = Written().create_graph(x)
    grad = inner.autodiff()
    w = popxl.variable(np.full(2, 3.0, "float32"))
    outer = ir.create_graph(lambda x, w: ops.call(inner.graph, x, w)[0], x, w)
    outer_grad = addons.autodiff(outer, called_graphs_grad_info={inner: grad})
    info = ops.call_with_info(outer, x, w)
    ones = ops.init((2,), popxl.float32) + 1.0
    dx, dw = outer_grad.call(ones, args=outer_grad.grad_graph_info.inputs_dict(info))
    np.testing.assert_array_equal(run([dx, dw]), [[6.0, 6.0], [4.0, 4.0]])
