"""Graphs changed through their handles, and constraints on the order of ops."""

from __future__ import annotations

import numpy as np
import popart._internal.ir as _ir
import popxl
import pytest
from popart import popart_exception
from popxl import ops
from popxl.context import get_current_context
from popxl_torch.ir.content import content_digest

from runtime.tests.popart.op_cases import graph, last, x


def run(main: popxl.Graph, tensor: popxl.Tensor) -> np.ndarray:
    stream = popxl.d2h_stream(tensor.shape, tensor.dtype)
    ops.host_store(stream, tensor)
    with popxl.Session(main.ir, "ipu_model") as session:
        return session.run()[stream][0]


def settings() -> _ir.Settings:
    return get_current_context()._get_op_settings("made")


def by_id(main: popxl.Graph, tensor_id: str) -> popxl.Tensor:
    return popxl.Tensor._from_pb_tensor(main._pb_graph.getTensor(tensor_id))


class TestOps:
    """Making, connecting and erasing."""

    def test_connected(self, main: popxl.Graph):
        t = x()
        identifier = _ir.OperatorIdentifier("ai.onnx", "Add", 7, _ir.NumInputs(2, 2), 1)
        op = main._pb_graph.createConnectedOp_AddOp(
            {0: t.id, 1: t.id}, {0: "double"}, identifier, settings()
        )
        assert isinstance(op, _ir.op.AddOp)
        assert op.getSettings().location.startswith(__file__)
        np.testing.assert_array_equal(run(main, by_id(main, "double")), np.full((2, 4), 2.0))

    def test_step_by_step(self, main: popxl.Graph):
        t = x()
        op = main._pb_graph.createOp_MulOp(settings())
        op.connectInTensor(1, t.id)
        op.connectInTensor(0, t.id)
        op.createAndConnectOutTensor(0, "square")
        op.setup()
        assert op.outTensor(0).info.shape() == [2, 4]
        assert run(main, by_id(main, "square"))[0, 0] == 1.0

    def test_a_call(self, main: popxl.Graph):
        t, called = x(), graph()
        op = main._pb_graph.createOp_CallOp(settings(), called._pb_graph)
        op.connectInTensor(0, t.id)
        op.createAndConnectOutTensor(0, "result")
        op.setup()
        assert op.getCalledGraph() == called._pb_graph
        np.testing.assert_array_equal(run(main, by_id(main, "result")), np.full((2, 4), 2.0))

    def test_replaced_by_a_clone(self, main: popxl.Graph):
        t = x()
        y = t + t
        old = last(main)
        z = ops.relu(y)
        new = old.cloneIntoGraph(main._pb_graph)
        assert new.opType() == "Add"
        assert new.id != old.id
        new.connectInTensor(0, t.id)
        new.connectInTensor(1, t.id)
        new.createAndConnectOutTensor(0, "again")
        new.setup()
        relu = z._pb_tensor.getProducer()
        relu.disconnectAllInputs()
        relu.connectInTensor(0, "again")
        main._pb_graph.topoCons().insert(new, relu)
        main._pb_graph.eraseOp(old.id)
        assert [op.opType() for op in main._pb_graph.getOps()] == ["Add", "Relu"]
        assert y.id not in [tensor.id for tensor in main._pb_graph.getTensors()]
        np.testing.assert_array_equal(run(main, z), np.full((2, 4), 2.0))

    def test_what_is_still_used_stays_and_the_session_says_so(self, main: popxl.Graph):
        y = ops.relu(x())
        ops.exp(y)
        main._pb_graph.getOps()[0].disconnectAllOutputs()
        assert y in main
        with pytest.raises(popart_exception, match="not defined"):
            popxl.Session(main.ir, "ipu_model")

    def test_errors(self, main: popxl.Graph):
        t, handle = x(), main._pb_graph
        with pytest.raises(popart_exception):
            handle.eraseOp(1)
        with pytest.raises(popart_exception):
            handle.getTensor("nothing")
        with pytest.raises(popart_exception):
            handle.getIr().getGraph("nothing")
        op = handle.createOp_AddOp(settings())
        with pytest.raises(popart_exception):
            op.connectInTensor(0, "nothing")
        with pytest.raises(popart_exception):
            op.createAndConnectOutTensor(0, t.id)
        with pytest.raises(popart_exception):
            op.createAndConnectOutTensor(1, "second")
        with pytest.raises(popart_exception, match="attribute"):
            handle.createConnectedOp_SoftmaxOp({0: t.id}, {0: "y"}, settings())
        with pytest.raises(AttributeError):
            _ = handle.createOp_NoSuchOp
        with pytest.raises(AttributeError):
            _ = handle.noSuchMember


class TestLoops:
    """Inputs that loops get afterwards."""

    def test_an_input_more(self, main: popxl.Graph):
        t, more = x(), x()
        body = graph(lambda t: t + t)
        info = ops.repeat_with_info(body, 2, t)
        loop, wrapper = info._op, info.called_graph
        inner = f"{wrapper.id}/more"
        loop.addLoopInput(3, more.id, inner, False)
        assert info.parent_input(3) == more
        assert wrapper.inputs[3].id == inner
        loop.setTripCountValue(3)
        (call,) = wrapper._pb_graph.getOps()
        with body:
            extra = popxl.graph_input((2, 4), popxl.float32, "extra")
            ops.add_(body.outputs[0], extra)
        call.connectInTensor(1, inner)
        # 1 -> 2 * 1 + 1 = 3 -> 7 -> 15
        np.testing.assert_array_equal(run(main, info.outputs[0]), np.full((2, 4), 15.0))

    def test_before_one_that_is_modified(self, main: popxl.Graph):
        t = x()
        info = ops.repeat_with_info(graph(), 2, t)
        info.set_parent_input_modified(t)
        info._op.addLoopInput(2, x().id, f"{info.called_graph.id}/more")
        assert [info._op.modifiesIndex(i) for i in (2, 3)] == [False, True]

    def test_in_place_of_another(self, main: popxl.Graph):
        t, other = x(), x()
        info = ops.repeat_with_info(graph(), 2, t)
        info._op.addLoopInput(2, other.id, f"{info.called_graph.id}/other", overwrite=True)
        assert info.inputs == (other,)


class TestTopoCons:
    """Constraints of ``in_sequence`` and of programs."""

    @pytest.fixture
    def main(self) -> popxl.Graph:
        ir = popxl.Ir()
        with ir.main_graph as main:
            yield main

    def orders(self, main: popxl.Graph) -> set[tuple[int, int]]:
        """Numbers of ops in creation order, as pairs (before, after)."""
        found = main._pb_graph.getOps()
        constraints = main._pb_graph.topoCons()
        return {
            (i, j)
            for i, before in enumerate(found)
            for j, after in enumerate(found)
            if constraints.contains(before, after)
        }

    def relus(self, t: popxl.Tensor, count: int) -> None:
        for _ in range(count):
            ops.relu(t)

    def test_none_by_default(self, main: popxl.Graph):
        self.relus(x(), 2)
        assert self.orders(main) == set()

    def test_in_sequence(self, main: popxl.Graph):
        with popxl.in_sequence():
            self.relus(x(), 3)
        assert self.orders(main) == {(0, 1), (1, 2)}

    def test_a_group_without_order(self, main: popxl.Graph):
        t = x()
        with popxl.in_sequence():
            self.relus(t, 1)
            with popxl.in_sequence(False):
                self.relus(t, 2)
            self.relus(t, 2)
        assert self.orders(main) == {(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)}

    def test_pass_cuts_the_chain(self, main: popxl.Graph):
        t = x()
        with popxl.in_sequence():
            self.relus(t, 1)
            with popxl.in_sequence("pass"):
                self.relus(t, 2)
            self.relus(t, 2)
        assert self.orders(main) == {(3, 4)}

    def test_leaving_ends_the_chain(self, main: popxl.Graph):
        t = x()
        for _ in range(2):
            with popxl.in_sequence():
                self.relus(t, 1)
        assert self.orders(main) == set()

    def test_each_graph_has_its_own_chain(self, main: popxl.Graph):
        t = x()
        with popxl.in_sequence():
            self.relus(t, 1)
            called = graph(lambda t: ops.exp(ops.relu(t)))
            self.relus(t, 1)
        assert self.orders(main) == {(0, 1)}
        assert self.orders(called) == {(0, 1)}

    def test_gradient_graphs_have_none(self, main: popxl.Graph):
        x()
        with popxl.in_sequence():
            info = popxl.transforms.autodiff(graph(lambda t: ops.exp(t * t)))
        assert len(info.graph._pb_graph.getOps()) > 1
        assert self.orders(info.graph) == set()

    def test_inserted_ones_reorder(self, main: popxl.Graph):
        t = x()
        first, second = ops.exp(t), ops.exp(t)
        third = ops.relu(second)
        handle, constraints = main._pb_graph, main._pb_graph.topoCons()
        a, b, c = handle.getOps()
        constraints.insert(c, a)
        assert [op.id for op in handle.getOpSchedule()] == [b.id, c.id, a.id]
        assert constraints.getBefores(a) == [c]
        assert constraints.getAfters(c) == [a]
        for before, after in ((a, c), (c, b)):
            with pytest.raises(popart_exception):
                constraints.insert(before, after)
        constraints.remove(c, a)
        assert not constraints.contains(c, a)
        assert {first, second, third} < set(main.tensors)


def test_hints_stay_with_an_op_and_change_nothing(main: popxl.Graph):
    """A clone has them, and the program's digest does not depend on them."""
    t = ops.init((2, 2), popxl.float32)
    ops.conv(ops.init((1, 1, 4, 4), popxl.float32), ops.init((1, 1, 2, 2), popxl.float32))
    ops.matmul(t, t)
    conv, product = main._pb_graph.getOps()[-2:]
    before = content_digest(main.ir._program)
    product.setAvailableMemoryProportion(0.3)
    product.setUseFullyConnectedPass(False)
    options = conv.getConvOptions()
    options.availableMemoryProportions = [0.2]
    conv.setConvOptions(options)
    assert content_digest(main.ir._program) == before
    twin = product.cloneIntoGraph(main._pb_graph)
    assert (twin.getAvailableMemoryProportion(), twin.useFullyConnectedPass()) == (0.3, False)
    assert conv.getConvOptions().availableMemoryProportions == [0.2]
