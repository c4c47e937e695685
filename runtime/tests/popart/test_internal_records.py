"""Members of low-level handles, records and enums, and private helpers of popxl."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import popart._internal.ir as _ir
import popxl
import pytest
from popart import DataType, popart_exception
from popxl import ops
from popxl.context import get_current_context
from popxl.ops import var_updates

from runtime.tests.popart.op_cases import buffer, graph, image, ints, last, scale, var, x


class TestMembersOfClasses:
    """Members that only ops of some kinds have."""

    WITHOUT: ClassVar = ["getTripCountValue", "getCalledGraph", "getAxis", "getFactor"]

    @pytest.mark.parametrize("name", WITHOUT)
    def test_others_do_not_have_them(self, main: popxl.Graph, name: str):
        ops.relu(x())
        with pytest.raises(AttributeError):
            getattr(last(main), name)

    def test_calls(self, main: popxl.Graph):
        t, u = x(), x()
        called = popxl.gir().create_graph(lambda a, b: a + b, t, u)
        ops.call(called, t, u)
        call = last(main)
        assert call.getCalledGraph() == called._pb_graph
        assert [call.modifiesIndex(i) for i in (0, 1)] == [False, False]
        call.addModified(1, [_ir.view.Region.getFull([2, 4])])
        assert [call.modifiesIndex(i) for i in (0, 1)] == [False, True]
        assert call.subgraphInToOpInIndex(0, 1) == call.opInToSubgraphInIndex(0, 1) == 1

    def test_loops(self, main: popxl.Graph):
        ops.repeat(graph(), 2, x())
        loop = last(main)
        loop.addModified(2, [])
        assert [loop.modifiesIndex(i) for i in (1, 2)] == [False, True]

    def test_axis(self, main: popxl.Graph):
        ops.gather(x(), ints(3), axis=-1)
        assert last(main).getAxis() == 1

    def test_factor(self, main: popxl.Graph):
        var_updates.accumulate_(x(), x(), 0.25)
        assert last(main).getFactor().val() == 0.25

    def test_source(self, main: popxl.Graph):
        x().copy_to_ipu(3, 2)
        assert last(main).getSourceIpu() == 2

    def test_matmul(self, main: popxl.Graph):
        ops.matmul(x(), var(4, 3), partials_type=popxl.float16)
        product = last(main)
        assert product.getPartialsType() is DataType.FLOAT16
        product.setAvailableMemoryProportion(0.3)
        product.setUseFullyConnectedPass(True)

    def test_conv(self, main: popxl.Graph):
        ops.conv(image(), var(3, 2, 2, 2))
        options = last(main).getConvOptions()
        assert options.availableMemoryProportions == options.partialsTypes == []
        options.availableMemoryProportions = [0.5]
        last(main).setConvOptions(options)


class TestTensor:
    """Members of tensor handles beyond identity and shape."""

    def test_type(self, main: popxl.Graph):
        t = x()
        handles = [tensor._pb_tensor for tensor in (t, t + t, scale())]
        expected = ["Variable", "ActGrad", "Const"]
        assert [handle.tensor_type().name for handle in handles] == expected

    def test_modified_regions(self, main: popxl.Graph):
        t, u = x(), x()
        ops.add_(t, u)
        update = last(main)
        full = _ir.view.Region.getFull([2, 4])
        assert t._pb_tensor.modifiedRegionsByOps([update]) == [full]
        assert u._pb_tensor.modifiedRegionsByOps([update]) == []
        assert t._pb_tensor.modifiedRegionsByOps([]) == []

    def test_aliases(self, main: popxl.Graph):
        t, u = x(), x()
        view, copy = t.reshape_((8,)), u.reshape((8,))
        found = [tensor._pb_tensor.isAliased() for tensor in (t, view, u, copy)]
        assert found == [True, True, False, False]

    def test_location(self, main: popxl.Graph):
        info = x()._pb_tensor.tensorLocationInfo
        assert isinstance(info, _ir.LocationInfo)
        assert not info.isRemote()
        stored = buffer()
        remote = popxl.remote_variable(np.ones((2, 4), np.float32), stored)
        assert remote._pb_tensor.tensorLocationInfo.isRemote()

    def test_placement(self, main: popxl.Graph):
        t = x()
        with popxl.ipu(1), popxl.io_tiles():
            y = t + t
        assert y._get_ipu_and_tile_set() == (1, "io")
        assert t._get_ipu_and_tile_set(False, False) == ("undefined", "undefined")
        with pytest.raises(popxl.errors.UndefinedValue):
            t._get_ipu_and_tile_set(raise_on_undefined_tile_set=False)


class TestRecords:
    """Records and enums."""

    def test_tensor_info(self, main: popxl.Graph):
        info = x()._pb_tensor.info
        assert info == _ir.TensorInfo(_ir.DataType.FLOAT, [2, 4]) == _ir.TensorInfo("FLOAT", (2, 4))
        assert info != _ir.TensorInfo("FLOAT16", (2, 4))
        assert (info.shape(), info.rank(), info.nelms()) == ([2, 4], 2, 8)
        assert hash(info) == hash(_ir.TensorInfo("FLOAT", [2, 4]))

    def test_settings(self, main: popxl.Graph):
        with popxl.name_scope("a"), popxl.ipu(2), popxl.io_tiles():
            settings = get_current_context()._get_op_settings("b")
            assert isinstance(settings, _ir.Settings)
            ops.relu(x())
        assert settings.name == "a/b"
        for found in (settings, last(main).getSettings()):
            assert (found.vgraphId, found.tileSet) == (2, _ir.TileSet.IO)
            assert found.executionContext is _ir.ExecutionContext.Normal

    def test_enums_are_those_of_popxl(self):
        for name in ("TileSet", "ExecutionContext", "TensorLocation", "TensorStorage"):
            assert getattr(_ir, name) is getattr(popxl.tensorlocation, name)
        assert popxl.float16._pb_dtype is _ir.DataType.FLOAT16 is DataType.FLOAT16

    def test_regions(self):
        full, empty = _ir.view.Region.getFull([2, 3]), _ir.view.Region.getEmpty(2)
        assert (full.nelms(), full.rank(), full.isEmpty()) == (6, 2, False)
        assert (empty.nelms(), empty.rank(), empty.isEmpty()) == (0, 2, True)
        assert not _ir.view.Region.getFull(()).isEmpty()
        assert _ir.view.Region.getEmpty(0).isEmpty()

    def test_connections(self):
        kind = _ir.ExpectedConnectionType.FwdGrad
        connection = _ir.ExpectedConnection("x", kind)
        info = _ir.BwdGraphInfo(_ir.GraphId("g"), [connection], [])
        assert (connection.fwdId, connection.type) == ("x", kind)
        assert (info.bwdGraphId.str(), info.expectedInputs, info.expectedOutputs) == (
            "g",
            [connection],
            [],
        )

    def test_identifier(self):
        identifier = _ir.OperatorIdentifier("ai.onnx", "Add", 7, _ir.NumInputs(2, 2), 1)
        assert (identifier.domain, identifier.type, identifier.version) == ("ai.onnx", "Add", 7)
        assert identifier.numInputs == _ir.NumInputs(2, 2)

    def test_patterns(self):
        level = _ir.patterns.PatternsLevel
        patterns = _ir.patterns.Patterns(level.NoPatterns).enablePattern("DecomposeSum", True)
        patterns.enableRuntimeAsserts(False)
        assert patterns.isPatternEnabled("DecomposeSum")
        assert not patterns.isPatternEnabled("PostNRepl")
        assert [member.name for member in level] == ["NoPatterns", "Minimal", "Default", "All"]
        assert _ir.patterns.Patterns().level is level.Default

    def test_scopes(self, main: popxl.Graph):
        called = graph()
        (t,) = called.inputs
        assert _ir.addScope(called._pb_graph, t.name) == t.id
        assert _ir.removeScope(called._pb_graph, t.id) == t.name
        assert _ir.addScope(main._pb_graph, "a") == _ir.removeScope(main._pb_graph, "a") == "a"

    def test_handles_by_class(self, main: popxl.Graph):
        t = x()
        assert isinstance(main._pb_graph, _ir.Graph)
        assert isinstance(main.ir._pb_ir, _ir.Ir)
        assert isinstance(t._pb_tensor, _ir.Tensor)
        assert isinstance(main._pb_graph.id, _ir.GraphId)
        assert isinstance(main.ir._pb_ir.getSessionOptions(), _ir.SessionOptions)
        with pytest.raises(popart_exception):
            main._pb_graph.getOp(12345)


class TestHelpersOfPopxl:
    """Private helpers that programs touch."""

    def test_values(self, main: popxl.Graph):
        data = np.arange(6, dtype=np.float32).reshape(2, 3)
        variable, constant = popxl.variable(data), popxl.constant(data)
        for tensor in (variable, constant):
            found = popxl.utils._popxl_to_numpy(tensor)
            np.testing.assert_array_equal(found, data)
            found[:] = 0
            np.testing.assert_array_equal(popxl.utils._popxl_to_numpy(tensor), data)
        with pytest.raises(TypeError, match="value on the host"):
            popxl.utils._popxl_to_numpy(variable + constant)

    def test_devices(self):
        device = popxl.utils._to_device_info("ipu_model")
        assert popxl.utils._to_device_info(device) is device
        with pytest.raises(ValueError, match="Incorrect device type"):
            popxl.utils._to_device_info("toaster")
