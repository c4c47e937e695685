"""The low-level handles, and the names of PopART that programs touch."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import popart
import popart.session
import popxl
import pytest
from popxl import ops


@pytest.fixture
def program(ir: popxl.Ir) -> dict[str, Any]:
    """w -> a call of a graph that adds 1 -> y."""
    with ir.main_graph, popxl.ipu(1):
        w = popxl.variable(np.zeros((2, 3), "float16"), name="w")
        graph = ir.create_graph(lambda x: x + 1.0, w)
        info = ops.call_with_info(graph, w)
    return {"ir": ir, "w": w, "graph": graph, "info": info, "y": info.outputs[0]}


def test_ir(program: dict[str, Any]):
    ir, handle = program["ir"], program["ir"]._pb_ir
    assert handle.getId() == ir.id
    assert [graph.id for graph in handle.getAllGraphs()] == ["", program["graph"].id]
    assert handle.getMainGraph() == ir.main_graph._pb_graph
    assert handle.getGraph(program["graph"].id) == program["graph"]._pb_graph
    assert handle.getTensor("w") == program["w"]._pb_tensor
    with pytest.raises(popart.popart_exception):
        handle.getTensor("nothing")
    assert handle.isPrepared() is False
    popxl.Session(ir, "ipu_hw")
    assert handle.isPrepared() is True


def test_steps_of_the_sdk_that_do_nothing(program: dict[str, Any]):
    handle = program["ir"]._pb_ir
    main = handle.getMainGraph()
    handle.setPatterns(None)
    handle.applyPreAliasPatterns(main)
    handle.applyInplacePattern(main)
    handle.updateVertices()
    assert [op.opType() for op in main.getOps()] == ["Call"]


def test_data_flow(program: dict[str, Any]):
    flow = popart.DataFlow(4, {"y": popart.AnchorReturnType("All")})
    program["ir"]._pb_ir.setDataFlow(flow)
    assert program["ir"].num_host_transfers == 4
    assert flow.anchors() == ["y"]


def test_log(program: dict[str, Any], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "popart"):
        program["ir"]._pb_ir.logIr()
    assert "Call" in caplog.text
    assert "Add" in caplog.text


def test_graph(program: dict[str, Any]):
    graph, handle = program["graph"], program["graph"]._pb_graph
    (x,), (out,) = graph.inputs, graph.outputs
    assert handle.id == graph.id
    assert handle.id.str() == graph.id
    assert type(handle.id.str()) is str
    assert handle.getInputIds() == [x.id]
    assert handle.getOutputIds() == [out.id]
    assert (handle.getInputId(0), handle.getOutputId(0)) == (x.id, out.id)
    assert handle.getInputIndex(x.id) == handle.getOutputIndex(out.id) == 0
    assert handle.getInputTensor(0) == x._pb_tensor
    assert handle.getOutputTensor(0) == out._pb_tensor
    assert {t.id for t in handle.getTensors()} == {t.id for t in graph.tensors}
    assert handle.getTensor(x.id) == x._pb_tensor
    assert handle.getIr().getId() == program["ir"].id
    assert handle.getCalledGraphs() == []
    assert program["ir"].main_graph._pb_graph.getCalledGraphs() == [handle]
    (op,) = handle.getOps()
    assert handle.getOpSchedule(True) == [op]
    assert handle.getOpIds() == [op.id]
    assert handle.getOp(op.id) == op
    with pytest.raises(popart.popart_exception):
        handle.getOp(op.id + 1000)
    handle.removeOutput(0)
    assert graph.outputs == ()


def test_op(program: dict[str, Any]):
    op = program["info"]._op
    w, y = program["w"]._pb_tensor, program["y"]._pb_tensor
    assert op.opType() == op.opid.type == "Call"
    assert "Call" in op.debugName()
    assert op.getGraph() == program["ir"].main_graph._pb_graph
    assert op.inTensor(0) == w
    assert op.outTensor(0) == y
    assert op.getInputTensors() == [w]
    assert op.getOutputTensors() == [y]
    assert op.getInputIndexMap() == {0: w}
    assert op.getOutputIndexMap() == {0: y}
    assert op.hasInput(0)
    assert not op.hasInput(1)
    assert not op.hasInput(-1)
    assert op.hasInputTensor(w)
    assert not op.hasInputTensor(y)
    assert op.inIndex(w) == 0
    assert op.getCalledGraph() == program["graph"]._pb_graph
    assert op.getCalledGraphs() == [program["graph"]._pb_graph]
    assert op.getVirtualGraphId() == 1
    for call in (lambda: op.inTensor(1), lambda: op.outTensor(-1), lambda: op.inIndex(y)):
        with pytest.raises(IndexError):
            call()


def test_ops_that_write(main: popxl.Graph):
    w = popxl.variable([1.0])
    ops.add_(w, w + 1.0)
    add, in_place = main._pb_graph.getOps()
    assert not add.modifiesIndex(0)
    assert in_place.modifiesIndex(0)
    assert not in_place.modifiesIndex(1)


def test_tensor(program: dict[str, Any]):
    w, y = program["w"]._pb_tensor, program["y"]._pb_tensor
    assert w.id == "w"
    assert (w.info.shape(), w.info.metaShape(), w.info.rank(), w.info.nelms()) == ([2, 3], [], 2, 6)
    assert w.info.dataType() is popart.DataType.FLOAT16
    assert w.hasTensorData()
    assert not y.hasTensorData()
    assert w.getGraph() == program["ir"].main_graph._pb_graph
    assert not w.hasProducer()
    assert y.getProducer() == program["info"]._op
    assert (w.hasVirtualGraphId(), y.hasVirtualGraphId()) == (False, True)
    assert y.getVirtualGraphId() == 1
    with pytest.raises(popart.popart_exception):
        w.getVirtualGraphId()
    assert popxl.Tensor._from_pb_tensor(w) is program["w"]


def test_every_dtype_has_a_low_level_name(main: popxl.Graph):
    from popxl.testing import get_all_dtypes

    names = set()
    for dtype in [*get_all_dtypes(), popxl.bool]:
        names.add(ops.init((1,), dtype)._pb_tensor.info.dataType().name)
    assert {"FLOAT", "DOUBLE", "BOOL", "FLOAT8_143", "UINT32", "COMPLEX64"} <= names
    assert len(names) == 16


def test_session(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    n = popxl.variable(0)
    n += 1
    session = make_session(ir)
    handle = session._pb_session
    handle.setEngineIsLoaded(False)
    with session:
        assert handle.areHostWeightsInSync()
        session.run()
        assert not handle.areHostWeightsInSync()
        handle.copyDeviceWeightsToHost()
        assert handle.areHostWeightsInSync()
        assert n._value.data.host == 1
        session.write_variable_data(n, 5)
        handle.markHostWeightsOutOfSync()
        session.run()
        handle.weightsFromHost()
        session.run()
    assert session.get_tensor_data(n) == 6


EXCEPTIONS = {
    "popart_exception": Exception,
    "popart_internal_exception": popart.popart_exception,
    "popart_runtime_error": popart.popart_exception,
    "poplibs_exception": Exception,
    "poplar_exception": Exception,
    "poplar_runtime_error": popart.poplar_exception,
    "poplar_application_runtime_error": popart.poplar_runtime_error,
    "poplar_system_runtime_error": popart.poplar_runtime_error,
    "poplar_recoverable_runtime_error": popart.poplar_system_runtime_error,
    "poplar_unrecoverable_runtime_error": popart.poplar_system_runtime_error,
    "poplar_unknown_runtime_error": popart.poplar_system_runtime_error,
}


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exceptions(name: str):
    assert getattr(popart, name).__bases__ == (EXCEPTIONS[name],)


def test_out_of_memory():
    assert issubclass(popart.session.OutOfMemoryException, popart.popart_exception)


def test_names_of_popart():
    assert "popxl-torch" in popart.versionString()
    assert isinstance(popart.getLogger(), logging.Logger)
    settings = popart.VariableSettings(
        popart.CommGroup(popart.CommGroupType.Consecutive, 2),
        popart.VariableRetrievalMode.AllReplicas,
    )
    assert settings.retrievalMode is popart.VariableRetrievalMode.AllReplicas
    assert popart.VariableSettings().retrievalMode is popart.VariableRetrievalMode.OnePerGroup
    for enum, member in [
        (popart.ReductionType, "Mean"),
        (popart.VirtualGraphMode, "Manual"),
        (popart.SyntheticDataMode, "Zeros"),
    ]:
        assert enum[member].name == member
    array = np.zeros(1)
    assert popart.PyStepIO({"x": array}, {}).inputs["x"] is array
    assert popart.PyWeightsIO({"w": array}).weights["w"] is array


def test_devices():
    manager = popart.DeviceManager()
    device = manager.createIpuModelDevice({"numIPUs": 2})
    assert not device.isAttached
    assert device.attach()
    assert device.isAttached
    device.detach()
    assert not device.isAttached
    assert manager.tryAcquireAvailableDevice(1).isAttached
    assert not manager.createCpuDevice().isAttached


def test_an_op_can_be_moved_to_another_graph(program: dict[str, Any]):
    """The steps of PopART's transforms: clone, connect, set up, erase."""
    graph, w = program["graph"]._pb_graph, program["w"]._pb_tensor
    op = graph.getOps()[0]
    main = program["ir"].main_graph._pb_graph
    clone = op.cloneIntoGraph(main)
    assert clone.getOutputTensors() == []
    clone.connectInTensor(1, w.id)
    assert not clone.hasInput(0)
    clone.connectInTensor(0, w.id)
    with pytest.raises(popart.popart_exception):
        clone.createAndConnectOutTensor(1, "sum")
    clone.createAndConnectOutTensor(0, "sum")
    clone.setup()
    made = main.getTensor(clone.outId(0))
    assert made.info == w.info
    assert clone in w.consumers.getOps()
    assert w.consumers.getTotal() == 3  # the call, and both inputs of the clone
    main.markAsOutput("sum")
    assert main.getOutputIds() == ["sum"]
    graph.removeOutput(0)
    before = len(graph.getTensors())
    graph.eraseOp(op.id)
    assert len(graph.getTensors()) == before - 1
    with pytest.raises(popart.popart_exception):
        graph.getOp(op.id)


def test_a_loop_gets_inputs_and_outputs(ir: popxl.Ir):
    with ir.main_graph:
        x, y = (popxl.variable(np.zeros(2, "float32"), name=name) for name in "xy")
        graph = ir.create_graph(lambda x: x + 1.0, x)
        loop = ops.repeat_with_info(graph, 3, x)._op
    body = loop.getCalledGraph()
    loop.addLoopInput(3, y.id, f"{body.id}/y", False)
    assert loop.inTensor(3) == y._pb_tensor
    assert body.getInputIndex(f"{body.id}/y") == 3
    loop.addLoopOutput(1, "last_y", f"{body.id}/y", False)
    assert loop.outTensor(1).info == y._pb_tensor.info
