"""Gradient graphs: inputs, outputs, names, stitching, called graphs, errors."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import popxl
import pytest
import torch
from popart import popart_exception
from popxl import ops
from popxl.transforms import (
    ExpectedConnection,
    ExpectedConnectionType,
    GradGraphInfo,
    autodiff,
    decompose_sum,
)

from runtime.tests.popxl.ops.op_testing import main_graph, tensor
from runtime.tests.popxl.transforms.grad_testing import check_gradients, load, run, store

RTOL = 1e-9  # of float64 arithmetic

Fwd, FwdGrad = ExpectedConnectionType.Fwd, ExpectedConnectionType.FwdGrad


def net(x: popxl.Tensor, w: popxl.Tensor) -> popxl.Tensor:
    return ops.tanh(ops.exp(x @ w))


def kinds(graph: popxl.Graph) -> list[str]:
    return [op.opType() for op in graph._pb_graph.getOps()]


def made(build: Callable, *shapes: tuple[int, ...]) -> popxl.Graph:
    return popxl.gir().create_graph(build, *(tensor(shape) for shape in shapes))


# -- structure ----------------------------------------------------------------------------------


def test_inputs_are_the_provided_gradients_then_forward_values_by_id():
    with main_graph():
        graph = made(net, (2, 3), (3, 4))
        info = autodiff(graph)
        types = [connection.connection_type for connection in info.expected_inputs]
        ids = [t.id for t in info.inputs[1:]]
        assert types == [FwdGrad] + [Fwd] * len(ids)
        assert info.inputs[0] == graph.outputs[0]
        assert ids == sorted(ids)
        assert {t.name for t in info.inputs} == {"x", "w", "exp_out", "tanh_out"}
        assert len(info.graph.inputs) == len(info.expected_inputs)
        assert [t.shape for t in info.graph.inputs] == [t.shape for t in info.inputs]


def test_outputs_follow_grads_required():
    with main_graph():
        graph = made(net, (2, 3), (3, 4))
        info = autodiff(graph, grads_required=[graph.inputs[1], graph.inputs[0]])
        assert info.outputs == (graph.inputs[1], graph.inputs[0])
        assert [t.shape for t in info.graph.outputs] == [(3, 4), (2, 3)]
        assert all(c.connection_type is FwdGrad for c in info.expected_outputs)


def test_names():
    with main_graph():
        graph = made(net, (2, 3), (3, 4))
        infos = [autodiff(graph) for _ in range(3)]
        assert [i.graph.id for i in infos] == [
            f"{graph.id}_bwd", f"{graph.id}_bwd_1", f"{graph.id}_bwd_2"
        ]  # fmt: skip
        first = infos[0].graph
        assert first.inputs[0].name == "Gradient___tanh_out"
        assert [t.name for t in first.outputs] == ["Gradient___x", "Gradient___w"]
        assert first.get_tensor(f"{first.id}/Gradient___exp_out").shape == (2, 4)


def test_settings_around_autodiff_stay_outside():
    created = []
    with main_graph():
        graph = made(net, (2, 3), (3, 4))
        context = popxl.context.get_current_context()
        handle = context.register_op_created_hook(created.append)
        with popxl.name_scope("scope"), popxl.ipu(2):
            info = autodiff(graph)
            assert context.name_scopes == ["scope"]
            assert context.ipu_id == 2
        context.remove_op_created_hook(handle)
        assert info.graph.outputs[0].name == "Gradient___x"
        assert {op.getVirtualGraphId() for op in info.graph._pb_graph.getOps()} == {0}
    assert created == []


def test_only_what_is_required_is_computed():
    with main_graph():
        graph = made(lambda x, w: x @ w, (2, 3), (3, 4))
        info = autodiff(graph, grads_required=[graph.inputs[1]])
        assert kinds(info.graph).count("MatMul") == 1
        assert [t.name for t in info.inputs] == ["matmul_out", "x"]
        assert len(graph.outputs) == 1


def test_an_output_that_is_also_an_input_gets_a_tensor_of_its_own():
    with main_graph():
        graph = made(lambda x, y: x + y, (3,), (3,))
        info = autodiff(graph)
        tensors = {*info.graph.inputs, *info.graph.outputs}
        assert len(tensors) == 3


def test_provided_defaults_to_all_outputs_and_accepts_inner_tensors():
    with main_graph():
        graph = made(lambda x: (ops.exp(x), ops.sin(x)), (3,))
        assert [t.name for t in autodiff(graph).inputs[:2]] == ["exp_out", "sin_out"]
        graph = made(net, (2, 3), (3, 4))
        inner = graph.get_tensor(f"{graph.id}/exp_out")
        info = autodiff(graph, grads_provided=[inner], grads_required=[graph.inputs[1]])
        assert info.inputs[0] == inner
        assert info.graph.inputs[0].name == "Gradient___exp_out"


def test_records():
    for kind in (ExpectedConnection, GradGraphInfo):
        with pytest.raises(TypeError, match="autodiff makes them"):
            kind()
    assert list(ExpectedConnectionType.__members__) == ["Fwd", "FwdGrad"]
    with main_graph():
        graph = made(net, (2, 3), (3, 4))
        info = autodiff(graph)
        assert repr(info).startswith("GradGraphInfo[\n")
        assert "FwdGrad" in repr(info.expected_inputs[0])
        assert info.forward_graph == graph
        again = GradGraphInfo._from_pb(graph.ir._pb_ir, graph._pb_graph, info._pb_bwd_info)
        assert (again.graph, again.inputs, again.outputs) == (info.graph, info.inputs, info.outputs)


def many_uses(x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
    return ops.exp(x) * ops.sin(x) + y * x


def test_gradients_of_several_uses_are_one_sum():
    with main_graph():
        info = autodiff(made(many_uses, (3,), (3,)))
        (op,) = [op for op in info.graph._pb_graph.getOps() if op.opType() == "Sum"]
        assert len(op.getInputTensors()) == 3
        assert op.outTensor(0).id == info.graph.outputs[0].id
        assert info.graph.outputs[0].name.startswith("Gradient___")


def test_a_decomposed_sum_adds_each_addend_when_it_is_there():
    with main_graph():
        info = autodiff(made(many_uses, (3,), (3,)))
        before = info.graph.outputs
        assert decompose_sum(info.graph) is info.graph
        ops_ = info.graph._pb_graph.getOps()
        names = [op.opType() for op in ops_]
        assert (names.count("Sum"), names.count("Init"), names.count("AddLhsInplace")) == (0, 1, 3)
        assert info.graph.outputs == before
        adds = [op for op in ops_ if op.opType() == "AddLhsInplace"]
        made_by = [op.inTensor(1).getProducer() for op in adds]
        assert ops_.index(made_by[0]) + 2 == ops_.index(adds[0])
        assert [ops_.index(op) + 1 for op in made_by[1:]] == [ops_.index(op) for op in adds[1:]]


@pytest.mark.parametrize("decompose", [False, True])
def test_sums_of_gradients_are_right_decomposed_or_not(decompose: bool):
    x, y = np.random.default_rng(5).normal(size=(2, 3)).astype(np.float32)
    with main_graph() as main:
        loads: dict = {}
        a, b = load(x, loads), load(y, loads)
        graph = main.ir.create_graph(many_uses, a, b)
        info = autodiff(graph)
        if decompose:
            decompose_sum(info.graph)
        call = ops.call_with_info(graph, a, b)
        grads = ops.call(info.graph, np.ones(3)[None], inputs_dict=info.inputs_dict(call))
        streams = [store(t) for t in grads]
    found = run(main.ir, loads)
    s, t = (torch.tensor(v.astype(np.float64), requires_grad=True) for v in (x, y))
    (torch.exp(s) * torch.sin(s) + t * s).sum().backward()
    for stream, want in zip(streams, (s.grad, t.grad), strict=True):
        np.testing.assert_allclose(found[stream], want.numpy(), rtol=1e-5, atol=1e-6)


# -- stitching ----------------------------------------------------------------------------------


def test_inner_values_become_outputs_of_graph_and_calls():
    with main_graph():
        x, w = tensor((2, 3)), tensor((3, 4))
        graph = popxl.gir().create_graph(net, x, w)
        before = ops.call_with_info(graph, x, w)
        outer = popxl.gir().create_graph(lambda x, w: ops.call(graph, x, w)[0], x, w)
        info = autodiff(graph)
        assert [t.name for t in graph.outputs] == ["tanh_out", "exp_out"]
        assert len(before.outputs) == 2
        assert before.outputs[1].name.startswith("autodiff_output__t")
        (op,) = outer._pb_graph.getOps()
        assert len(op.getOutputTensors()) == 2
        assert len(outer.outputs) == 1
        after = ops.call_with_info(graph, x, w)
        for call in (before, after):
            given = info.inputs_dict(call)
            assert list(given) == list(info.graph.inputs[1:])
            assert given[info.graph.inputs[1]] == call.outputs[1]


def test_constants_are_handed_over():
    with main_graph():
        graph = made(lambda x: x * 3.0, (2,))
        info = autodiff(graph)
        assert len(graph.outputs) == 2
        assert isinstance(graph.outputs[1], popxl.tensor.Constant)
        assert info.inputs[1] == graph.outputs[1]


def test_a_graph_of_a_conditional_recomputes():
    def build(x: popxl.Tensor) -> popxl.Tensor:
        return ops.tanh(ops.exp(x) * 2.0)

    with main_graph():
        x, condition = tensor((3,)), ops.init((), popxl.bool)
        graph = popxl.gir().create_graph(build, x)
        ops.conditional(condition, graph, graph, [x], [x])
        info = autodiff(graph)
        assert len(graph.outputs) == 1
        assert [t.name for t in info.inputs] == ["tanh_out", "tanh_out", "x"]
        assert "Exp" in kinds(info.graph)


def test_maps_between_calls():
    with main_graph():
        x, w = tensor((2, 3)), tensor((3, 4))
        graph = popxl.gir().create_graph(net, x, w)
        info = autodiff(graph)
        fwd = ops.call_with_info(graph, x, w)
        given = {info.graph.inputs[0]: tensor((2, 4)), **info.inputs_dict(fwd)}
        bwd = ops.call_with_info(info.graph, inputs_dict=given)
        by_graph = info.fwd_graph_ins_to_grad_parent_outs(bwd)
        assert by_graph == dict(zip(graph.inputs, bwd.outputs, strict=True))
        by_parent = info.fwd_parent_ins_to_grad_parent_outs(fwd, bwd)
        assert by_parent == {x: bwd.outputs[0], w: bwd.outputs[1]}
        with pytest.raises(TypeError, match="must be one of graph"):
            info.inputs_dict(bwd)
        with pytest.raises(TypeError, match="must be one of graph"):
            info.fwd_graph_ins_to_grad_parent_outs(fwd)


# -- graphs that call graphs --------------------------------------------------------------------


rng = np.random.default_rng(77)


def normal(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


def test_called_graphs_are_differentiated():
    def layer(x: popxl.Tensor, w: popxl.Tensor) -> popxl.Tensor:
        return ops.tanh(x @ w)

    def build(x: popxl.Tensor, w: popxl.Tensor, v: popxl.Tensor) -> popxl.Tensor:
        graph = popxl.gir().create_graph(layer, x, w)
        (y,) = ops.call(graph, x, w)
        (z,) = ops.call(graph, y, v)
        return z * y

    def reference(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(x @ w)
        return torch.tanh(y @ v) * y

    check_gradients(build, reference, normal(2, 4), normal(4, 4), normal(4, 4))
    check_gradients(build, reference, normal(2, 4), normal(4, 4), normal(4, 4), wrt=[1])


def test_calls_nest_and_share_inputs():
    def inner(x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        return ops.exp(x) * ops.sin(y)

    def middle(x: popxl.Tensor) -> popxl.Tensor:
        graph = popxl.gir().create_graph(inner, x, x)
        return ops.call(graph, x, x)[0] + x

    def build(x: popxl.Tensor) -> popxl.Tensor:
        graph = popxl.gir().create_graph(middle, x)
        return ops.call(graph, ops.call(graph, x)[0] * 0.1)[0]

    def step(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x) * torch.sin(x) + x

    check_gradients(build, lambda x: step(step(x) * 0.1), normal(3, 2))


def test_only_some_outputs_of_a_called_graph_are_used():
    def two(x: popxl.Tensor, y: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        return ops.exp(x), ops.detach(y) * 2.0

    def build(x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        graph = popxl.gir().create_graph(two, x, y)
        first, second = ops.call(graph, x, y)
        return first * y + second

    check_gradients(build, lambda x, y: torch.exp(x) * y + y.detach() * 2.0, normal(3), normal(3))


@pytest.mark.parametrize("taken", [True, False])
def test_conditionals(taken: bool):
    def left(x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        return ops.tanh(ops.exp(x) * y)

    def right(z: popxl.Tensor) -> popxl.Tensor:
        return ops.sin(z * 2.0)

    def build(c: popxl.Tensor, x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        then = popxl.gir().create_graph(left, x, y)
        other = popxl.gir().create_graph(right, x)
        (z,) = ops.conditional(ops.cast(c, popxl.bool), then, other, [x, y], [x])
        return z * x + y

    def reference(c: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = torch.tanh(torch.exp(x) * y) if taken else torch.sin(x * 2.0)
        return z * x + y

    check_gradients(build, reference, np.array(int(taken), np.int32), normal(3), normal(3))


def test_a_call_inside_a_branch_recomputes():
    def inner(x: popxl.Tensor) -> popxl.Tensor:
        return ops.sin(ops.exp(x))

    def branch(x: popxl.Tensor) -> popxl.Tensor:
        graph = popxl.gir().create_graph(inner, x)
        return ops.call(graph, x * 0.5)[0] * x

    def build(c: popxl.Tensor, x: popxl.Tensor) -> popxl.Tensor:
        graph = popxl.gir().create_graph(branch, x)
        return ops.conditional(ops.cast(c, popxl.bool), graph, graph, [x], [x])[0]

    check_gradients(
        build, lambda c, x: torch.sin(torch.exp(x * 0.5)) * x, np.array(1, np.int32), normal(3)
    )


def test_given_gradients_of_called_graphs_are_used():
    with main_graph() as main:
        loads: dict = {}
        x = load(normal(3), loads)
        graph = main.ir.create_graph(lambda x: ops.exp(x), x)
        fake = main.ir.create_graph(lambda g: g * 5.0, x)
        info = GradGraphInfo._make(
            fake,
            graph,
            [(graph.outputs[0]._value, FwdGrad)],
            [(graph.inputs[0]._value, FwdGrad)],
        )
        outer = main.ir.create_graph(lambda x: ops.call(graph, x)[0], x)
        d = autodiff(outer, called_graphs_grad_info={graph: info})
        call = ops.call_with_info(outer, x)
        (dx,) = ops.call(d.graph, np.ones(3)[None], inputs_dict=d.inputs_dict(call))
        stream = store(dx)
    np.testing.assert_array_equal(run(main.ir, loads)[stream], np.full(3, 5.0))


def test_all_gradient_graphs():
    with main_graph() as main:
        x = tensor((3,))
        inner = main.ir.create_graph(lambda x: ops.exp(x), x)
        outer = main.ir.create_graph(lambda x: ops.call(inner, x)[0], x)
        infos = autodiff(outer, return_all_grad_graphs=True)
        assert set(infos) == {inner, outer}
        assert infos[inner].forward_graph == inner
        assert [g.id for g in infos[outer].graph.called_graphs] == [infos[inner].graph.id]


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda x: ops.cast(ops.cast(x, popxl.int32), popxl.float32), "Unable to provide required"),
        (lambda x: ops.detach(x), "Unable to provide required"),
        (lambda x: ops.init((2,), popxl.float32), "Unable to provide required"),
        (lambda x: ops.isnan(x), "Unable to provide required"),
        (lambda x: ops.argmax(x), "Unable to provide required"),
        (lambda x: ops.increment_mod(x, 1, 3), "IncrementMod has no gradient"),
        (lambda x: ops.collectives.replicated_all_reduce(x), "AllReduce has no gradient"),
        (lambda x: ops.collectives.replicated_reduce_scatter(x), "has no gradient"),
        (lambda x: ops.scaled_add(x, x), "ScaledAdd has no gradient"),
        (lambda x: ops.equal(x, x), "does not have a valid grad op"),
        (lambda x: ops.greater(x, x), "does not have a valid grad op"),
        (lambda x: ops.add_(x * 1.0, x), "contains a modifying op"),
        (lambda x: ops.var_updates.accumulate_(x * 1.0, x), "contains a modifying op"),
        (lambda x: ops.fmod(ops.detach(x), x), "Unable to provide required"),
        (lambda x: ops.repeat(popxl.gir().create_graph(ops.exp, x), 2, x), "Loop has no gradient"),
    ],
)  # fmt: skip
def test_what_cannot_be_differentiated(build: Callable, text: str):
    with main_graph() as main:
        graph = made(build, (2,))
        with pytest.raises(popart_exception, match=text):
            autodiff(graph)
        assert f"{graph.id}_bwd" not in main.ir._program.graphs


def test_arguments_are_checked():
    with main_graph() as main:
        graph = made(net, (2, 3), (3, 4))
        with pytest.raises(popart_exception, match="grads_required is empty"):
            autodiff(graph, grads_required=[])
        with pytest.raises(popart_exception, match="is not in graph"):
            autodiff(graph, grads_required=[tensor((2,))])
        with pytest.raises(popart_exception, match="is not in graph"):
            autodiff(graph, grads_provided=[tensor((2,))])
        with pytest.raises(popart_exception, match="main graph"):
            autodiff(main)


def test_an_integer_input_has_no_gradient():
    with main_graph() as main:
        graph = main.ir.create_graph(
            lambda x, i: ops.gather(x, i), tensor((4, 2)), tensor((3,), popxl.int32)
        )
        with pytest.raises(popart_exception, match="Unable to provide required gradient output"):
            autodiff(graph)


def test_marked_graphs_are_refused_when_called():
    with main_graph() as main:
        x = tensor((3,))
        inner = main.ir.create_graph(lambda x: ops.exp(x), x)
        outer = main.ir.create_graph(lambda x: ops.call(inner, x)[0], x)
        inner._pb_graph.setCanBeRecursivelyAutodiffed(False)
        with pytest.raises(popart_exception, match="has been marked as unsafe to autodiff"):
            autodiff(outer)
        autodiff(inner)


def test_a_useless_gradient_is_an_input_and_a_warning(caplog: pytest.LogCaptureFixture):
    with main_graph():
        graph = made(lambda x, y: (ops.exp(x), ops.sin(y)), (2,), (2,))
        with caplog.at_level(logging.WARNING, "popxl"):
            info = autodiff(graph, grads_required=[graph.inputs[0]])
        assert [t.name for t in info.inputs] == ["exp_out", "sin_out", "exp_out"]
    assert "sin_out" in caplog.text


# -- a program ----------------------------------------------------------------------------------


def test_training_step():
    """A linear classifier learns what generated the labels."""
    data = np.random.default_rng(3)
    x = data.normal(size=(64, 8)).astype(np.float32)
    labels = (x @ data.normal(size=(8, 4))).argmax(-1).astype(np.int32)

    def classify(x: popxl.Tensor, t: popxl.Tensor, w: popxl.Tensor) -> popxl.Tensor:
        return ops.nll_loss(ops.softmax(x @ w, axis=-1), t)

    loads: dict = {}
    with main_graph() as main:
        given = [load(x, loads), load(labels, loads)]
        w = popxl.variable(np.zeros((8, 4), np.float32))
        graph = main.ir.create_graph(classify, *given, w)
        d = autodiff(graph, grads_required=[graph.inputs[2]])
        f = ops.call_with_info(graph, *given, w)
        (dw,) = ops.call(d.graph, 1.0, inputs_dict=d.inputs_dict(f))
        ops.scaled_add_(w, dw, b=-1.0)
        stream = store(f.outputs[0])
    with popxl.Session(main.ir, "ipu_hw") as session:
        losses = [float(session.run(loads)[stream]) for _ in range(60)]
    weight = torch.zeros(8, 4, requires_grad=True)
    for loss in losses:
        wanted = torch.nn.functional.cross_entropy(
            torch.tensor(x) @ weight, torch.tensor(labels).long()
        )
        assert loss == pytest.approx(wanted.item(), rel=1e-4)
        (grad,) = torch.autograd.grad(wanted, weight)
        weight = (weight - grad).detach().requires_grad_(True)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("output_shape", ["concat", "new_axis"])
def test_gathers_over_replicas_give_back_the_own_part(output_shape: str):
    weights, x = (
        normal(2, 6, 2) if output_shape == "concat" else normal(2, 2, 3, 2),
        normal(2, 3, 2),
    )

    def build(x: popxl.Tensor, w: popxl.Tensor) -> popxl.Tensor:
        return ops.collectives.replicated_all_gather(x, output_shape=output_shape) * w

    loads: dict = {}
    with main_graph(2) as main:
        tensors = []
        for array in (x, weights):
            stream = popxl.h2d_stream(array.shape[1:], popxl.float64)
            loads[stream] = array
            tensors.append(ops.host_load(stream))
        graph = main.ir.create_graph(build, *tensors)
        d = autodiff(graph, grads_required=[graph.inputs[0]])
        call = ops.call_with_info(graph, *tensors)
        given = [np.ones(weights.shape[1:])]
        stream = store(ops.call(d.graph, given, inputs_dict=d.inputs_dict(call))[0])
    found = np.array(run(main.ir, loads)[stream])
    for r in range(2):
        own = weights[r].reshape(2, 3, 2)[r]
        np.testing.assert_allclose(found[r], own, rtol=1e-12)


@pytest.mark.parametrize("kind", ["slice", "sharded"])
def test_slices_over_replicas_are_gathered(kind: str):
    x = normal(2, 6)
    functions = {
        "slice": ops.collectives.replicated_slice,
        "sharded": ops.collectives.replica_sharded_slice,
    }
    loads: dict = {}
    with main_graph(2) as main:
        stream = popxl.h2d_stream((6,), popxl.float64)
        loads[stream] = x
        t = ops.host_load(stream)
        graph = main.ir.create_graph(lambda t: ops.exp(functions[kind](t)), t)
        d = autodiff(graph)
        call = ops.call_with_info(graph, t)
        upstream = ops.init((3,), popxl.float64, meta_shape=d.graph.inputs[0].meta_shape) + 1.0
        out = store(ops.call(d.graph, upstream, inputs_dict=d.inputs_dict(call))[0])
    found = np.array(run(main.ir, loads)[out])
    wanted = np.exp(np.concatenate([x[0, :3], x[1, 3:]]))
    for r in range(2):
        np.testing.assert_allclose(found[r], wanted, rtol=1e-12)


def test_print_gradient(capfd: pytest.CaptureFixture):
    loads: dict = {}
    with main_graph() as main:
        x = load(np.array([2.0, 3.0]), loads)
        graph = main.ir.create_graph(
            lambda x: ops.print_tensor(x * x, "square", print_self=False, print_gradient=True), x
        )
        d = autodiff(graph)
        call = ops.call_with_info(graph, x)
        (dx,) = ops.call(d.graph, [np.array([5.0, 7.0])], inputs_dict=d.inputs_dict(call))
        stream = store(dx)
    np.testing.assert_array_equal(run(main.ir, loads)[stream], [20.0, 42.0])
    printed = capfd.readouterr().err
    assert "square_gradient" in printed
    assert "square:" not in printed


# -- unusual graphs -----------------------------------------------------------------------------


def test_outputs_that_are_inputs_or_repeated():
    def build(x: popxl.Tensor, y: popxl.Tensor) -> tuple[popxl.Tensor, ...]:
        z = x * y
        return x, z, z

    check_gradients(build, lambda x, y: (x, x * y, x * y), normal(3), normal(3))


def test_inner_tensors_can_be_required():
    loads: dict = {}
    with main_graph() as main:
        x = load(np.array([0.5, 2.0]), loads)
        graph = main.ir.create_graph(lambda x: ops.exp(ops.sin(x) * 3.0), x)
        inner = graph.get_tensor(f"{graph.id}/sin_out")
        d = autodiff(graph, grads_required=[inner, graph.inputs[0]])
        call = ops.call_with_info(graph, x)
        grads = ops.call(d.graph, [np.ones(2)], inputs_dict=d.inputs_dict(call))
        streams = [store(t) for t in grads]
    found = run(main.ir, loads)
    slope = 3 * np.exp(3 * np.sin(loads[next(iter(loads))]))
    np.testing.assert_allclose(found[streams[0]], slope, rtol=RTOL)
    np.testing.assert_allclose(found[streams[1]], slope * np.cos([0.5, 2.0]), rtol=RTOL)


def test_a_gradient_graph_can_be_repeated():
    """Newton's steps towards the root of exp(x) - 2 inside a loop."""

    def step(x: popxl.Tensor) -> popxl.Tensor:
        call = ops.call_with_info(graph, x)
        (slope,) = ops.call(d.graph, 1.0, inputs_dict=d.inputs_dict(call))
        return x - call.outputs[0] / slope

    loads: dict = {}
    with main_graph() as main:
        x = load(np.array(1.0), loads)
        graph = main.ir.create_graph(lambda x: ops.exp(x) - 2.0, x)
        d = autodiff(graph)
        body = main.ir.create_graph(step, x)
        (root,) = ops.repeat(body, 6, x)
        stream = store(root)
    assert run(main.ir, loads)[stream] == pytest.approx(np.log(2.0), rel=1e-12)


def test_graphs_shared_by_two_callers():
    loads: dict = {}
    x = np.array([0.3, 0.7])
    with main_graph() as main:
        t = load(x, loads)
        inner = main.ir.create_graph(lambda x: ops.exp(ops.sin(x)), t)
        first = main.ir.create_graph(lambda x: ops.call(inner, x)[0] * 2.0, t)
        second = main.ir.create_graph(lambda x: ops.call(first, ops.call(inner, x)[0])[0], t)
        streams = []
        for graph in (first, second, inner):
            d = autodiff(graph)
            call = ops.call_with_info(graph, t)
            (dx,) = ops.call(d.graph, [np.ones(2)], inputs_dict=d.inputs_dict(call))
            streams.append(store(dx))
    found = run(main.ir, loads)

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(torch.sin(x))

    for stream, function in zip(
        streams, (lambda x: 2 * f(x), lambda x: 2 * f(f(x)), f), strict=True
    ):
        leaf = torch.tensor(x, requires_grad=True)
        (wanted,) = torch.autograd.grad(function(leaf).sum(), leaf)
        np.testing.assert_allclose(found[stream], wanted.numpy(), rtol=RTOL)


@pytest.mark.parametrize(("outer", "inner"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_conditionals_nest_and_branches_may_lack_a_gradient(outer: int, inner: int):
    def leaf(x: popxl.Tensor) -> popxl.Tensor:
        return ops.exp(x * 0.5) * x

    def fixed(x: popxl.Tensor) -> popxl.Tensor:
        return ops.detach(x) + 1.0

    def middle(c: popxl.Tensor, x: popxl.Tensor) -> popxl.Tensor:
        then, other = (popxl.gir().create_graph(f, x) for f in (leaf, fixed))
        return ops.tanh(ops.conditional(c, then, other, [x], [x])[0])

    def build(c: popxl.Tensor, d: popxl.Tensor, x: popxl.Tensor) -> popxl.Tensor:
        c, d = (ops.cast(t, popxl.bool) for t in (c, d))
        then = popxl.gir().create_graph(middle, d, x)
        other = popxl.gir().create_graph(leaf, x)
        return ops.conditional(c, then, other, [d, x], [x])[0] + x

    def reference(c: torch.Tensor, d: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y = torch.exp(x * 0.5) * x
        z = torch.tanh(y if inner else x.detach() + 1.0)
        return (z if outer else y) + x

    flags = [np.array(flag, np.int32) for flag in (outer, inner)]
    check_gradients(build, reference, *flags, normal(3))
