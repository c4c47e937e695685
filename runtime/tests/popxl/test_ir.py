"""popxl.Ir: identity, replication, streams, environment."""

from __future__ import annotations

import gc
from pathlib import Path

import popart
import popdist
import popxl
import pytest
from popxl import ops


def test_main_graph_is_one_empty_graph(ir: popxl.Ir):
    assert ir.main_graph is ir.main_graph
    assert ir.main_graph.id == ir.main_graph.name == ""
    assert ir.main_graph.tensors == ()
    assert ir.main_graph.ir is ir


def test_ids_are_unique_and_comparisons_go_by_id(ir: popxl.Ir):
    other = popxl.Ir()
    assert ir.id != other.id
    assert hash(ir) == ir.id
    assert ir == ir
    assert ir != other
    assert repr(ir) == f"Ir[id={ir.id}]"


@pytest.mark.parametrize("foreign", [3, None, "ir"])
def test_comparison_with_another_type(ir: popxl.Ir, foreign: object):
    with pytest.raises(TypeError, match=r"popxl\.Ir"):
        assert ir == foreign


def test_an_ir_is_not_active_by_itself(ir: popxl.Ir):
    with pytest.raises(RuntimeError):
        popxl.gcg()


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_replication(factor: int):
    ir = popxl.Ir(replication=factor)
    options = ir._pb_ir.getSessionOptions()
    assert ir.replication_factor == ir.instance_replication_factor == factor
    assert options.enableReplicatedGraphs is (factor > 1)
    assert options.replicatedGraphCount == factor


def test_replication_can_be_set_until_there_is_a_session(ir: popxl.Ir):
    ir.replication_factor = 4
    assert ir.replication_factor == 4
    assert ir._pb_ir.getSessionOptions().enableReplicatedGraphs
    with ir.main_graph:
        popxl.constant(1) + 1
    popxl.Session(ir, "ipu_hw")
    with pytest.raises(RuntimeError):
        ir.replication_factor = 2


def test_session_options_set_replication_too(ir: popxl.Ir):
    options = ir._pb_ir.getSessionOptions()
    options.enableReplicatedGraphs = True
    options.replicatedGraphCount = 2
    assert ir.replication_factor == 2
    with ir.main_graph:
        y = popxl.d2h_stream((), popxl.int32)
        ops.host_store(y, popxl.constant(1))
    with popxl.Session(ir, "ipu_hw") as session:
        assert session.run()[y].shape == (2,)


def test_options_that_an_ir_fixes(ir: popxl.Ir):
    options = ir._pb_ir.getSessionOptions()
    assert options.aliasZeroCopy is True
    assert options.enableVariablesCaching is False
    assert options.useHostCopyOps is True
    assert options.enableInplaceAmbiguityChecking is True
    assert ir.num_host_transfers == 1


SCALAR_OPTIONS = {
    "partialsTypeMatMuls": "half",
    "enableDistributedReplicatedGraphs": True,
    "globalReplicationFactor": 2,
    "globalReplicaOffset": 1,
    "enableInplaceAmbiguityChecking": False,
    "enableStochasticRounding": True,
    "throwIfLog2ScaleTensorNotInRange": False,
    "numIOTiles": 32,
    "enableFloatingPointChecks": True,
    "aliasZeroCopy": False,
    "constantWeights": False,
    "enableVariablesCaching": True,
    "virtualGraphMode": "Off",
    "useHostCopyOps": False,
    "enableExplicitMainLoops": False,
    "explicitRecomputation": False,
    "decomposeGradSum": False,
    "defaultBufferingDepth": 2,
    "enablePrefetchDatastreams": False,
    "enableStableNorm": True,
    "groupNormStridedChannelGrouping": True,
    "enableNonStableSoftmax": True,
    "ensureFp32LossScaleTensor": True,
    "useLoopCandidateCreator": True,
    "finalDotOp": 5,
    "syntheticDataMode": popart.SyntheticDataMode.Zeros,
    "compileEngine": False,
    "timeLimitScheduler": 1.0,
    "swapLimitScheduler": 1,
    "kahnTieBreaker": "fifo",
    "enableMergeExchange": False,
    "exportPoplarComputationGraph": True,
}
MAPPING_OPTIONS = [
    "engineOptions",
    "reportOptions",
    "convolutionOptions",
    "matmulOptions",
    "gclOptions",
    "lstmOptions",
    "bufferingDepthMap",
]
OTHER_OPTIONS = [
    "dotChecks",
    "hardwareInstrumentations",
    "customCodelets",
    "replicatedCollectivesSettings",
    "experimentalSettings",
    "weightTensorLocationSettings",
    "activationTensorLocationSettings",
    "optimizerStateTensorLocationSettings",
    "accumulatorTensorLocationSettings",
]


@pytest.mark.parametrize("name", SCALAR_OPTIONS)
def test_options_are_live(ir: popxl.Ir, name: str):
    assert getattr(ir._pb_ir.getSessionOptions(), name) != SCALAR_OPTIONS[name]
    setattr(ir._pb_ir.getSessionOptions(), name, SCALAR_OPTIONS[name])
    assert getattr(ir._pb_ir.getSessionOptions(), name) == SCALAR_OPTIONS[name]
    assert getattr(popxl.Ir()._pb_ir.getSessionOptions(), name) != SCALAR_OPTIONS[name]


@pytest.mark.parametrize("name", MAPPING_OPTIONS)
def test_options_that_take_items(ir: popxl.Ir, name: str):
    getattr(ir._pb_ir.getSessionOptions(), name)["a.b"] = "true"
    assert dict(getattr(ir._pb_ir.getSessionOptions(), name)) == {"a.b": "true"}
    assert dict(getattr(popxl.Ir()._pb_ir.getSessionOptions(), name)) == {}


@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_other_options_can_be_read(ir: popxl.Ir, name: str):
    assert not getattr(ir._pb_ir.getSessionOptions(), name)


def test_options_that_are_not_known_can_be_set_but_not_read_before(ir: popxl.Ir):
    options = ir._pb_ir.getSessionOptions()
    with pytest.raises(AttributeError, match="noSuchOption"):
        _ = options.noSuchOption
    options.noSuchOption = 1
    assert ir._pb_ir.getSessionOptions().noSuchOption == 1
    assert not hasattr(popxl.Ir()._pb_ir.getSessionOptions(), "noSuchOption")


def test_a_tensor_does_not_outlive_its_ir():
    def made() -> popxl.Tensor:
        ir = popxl.Ir()
        with ir.main_graph:
            return popxl.variable(1)

    t = made()
    gc.collect()
    with pytest.raises(RuntimeError, match="is gone"):
        _ = t.ir
    with pytest.raises(RuntimeError, match="is gone"):
        _ = popxl.Tensor._from_pb_tensor(t._pb_tensor)


def test_a_graph_keeps_its_ir():
    graph = popxl.Ir().main_graph
    gc.collect()
    with graph:
        assert popxl.constant(1).ir is graph.ir


def test_popdist_without_a_launcher():
    assert not popdist.isPopdistEnvSet()
    assert (popdist.getInstanceIndex(), popdist.getNumInstances()) == (0, 1)
    assert popxl.Ir(replication="popdist").replication_factor == 1


def test_popdist_of_one_instance(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POPDIST_NUM_TOTAL_REPLICAS", "4")
    assert popdist.isPopdistEnvSet()
    ir = popxl.Ir("popdist")
    assert ir.replication_factor == ir.instance_replication_factor == 4


def test_popdist_of_two_instances(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POPDIST_NUM_TOTAL_REPLICAS", "4")
    monkeypatch.setenv("POPDIST_NUM_INSTANCES", "2")
    monkeypatch.setenv("POPDIST_INSTANCE_INDEX", "1")
    ir = popxl.Ir("popdist")
    assert (ir.replication_factor, ir.instance_replication_factor) == (4, 2)
    options = ir._pb_ir.getSessionOptions()
    assert (options.globalReplicationFactor, options.globalReplicaOffset) == (4, 2)
    with ir.main_graph:
        popxl.constant(1) + 1
    with pytest.raises(NotImplementedError, match="single instance"):
        popxl.Session(ir, "ipu_hw")


def test_popdist_options_and_device():
    options = popart.SessionOptions()
    popdist.popart.configureSessionOptions(options)
    assert options.globalReplicationFactor == 1
    assert isinstance(popdist.popart.getDevice(), popart.DeviceInfo)


def test_only_streams_that_ops_use_are_listed(ir: popxl.Ir):
    with ir.main_graph:
        x, _unused = (popxl.h2d_stream((), popxl.float32) for _ in range(2))
        y, _idle = (popxl.d2h_stream((), popxl.float32) for _ in range(2))
        assert ir.get_all_h2d_streams() == set()
        ops.host_store(y, ops.host_load(x))
    assert ir.get_all_h2d_streams() == {x}
    assert ir.get_all_d2h_streams() == {y}


def test_streams_of_sub_graphs_are_listed(ir: popxl.Ir):
    def fn():
        x = popxl.h2d_stream((), popxl.float32)
        ops.host_load(x)

    with ir.main_graph:
        ops.call(ir.create_graph(fn))
    (stream,) = ir.get_all_h2d_streams()
    assert stream.tensor_id == "h2d_stream"


def test_create_empty_graph(ir: popxl.Ir):
    first, second = ir.create_empty_graph("a"), ir.create_empty_graph()
    assert first.id == "a_subgraph(0)"
    assert second.id == "graph_subgraph(1)"
    with first:
        x = popxl.graph_input((2,), popxl.float32, "x")
        popxl.graph_output(x + 1.0)
    assert first.inputs == (x,)
    assert len(first.outputs) == 1


@pytest.mark.parametrize("variable", ["POPXL_CACHE_DIR", "POPART_CACHE_DIR"])
def test_cache_directory(monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.delenv("POPXL_CACHE_DIR", raising=False)
    assert not popxl.Ir()._pb_ir.getSessionOptions().enableEngineCaching
    monkeypatch.setenv(variable, "somewhere")
    options = popxl.Ir()._pb_ir.getSessionOptions()
    assert options.enableEngineCaching
    assert options.cachePath == "somewhere"


def test_the_newer_cache_variable_wins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POPART_CACHE_DIR", "old")
    monkeypatch.setenv("POPXL_CACHE_DIR", "new")
    assert popxl.Ir()._pb_ir.getSessionOptions().cachePath == "new"


def test_dot_checkpoint(ir: popxl.Ir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("POPART_DOT_CHECKS", raising=False)
    with ir.main_graph:
        x = popxl.variable(1.0, name='a"b')
        ops.call(ir.create_graph(lambda t: ops.relu(t) + t, x), x)
    ir.dot_checkpoint("start", tmp_path / "a" / "b")
    options = ir._pb_ir.getSessionOptions()
    assert options.logDir == str(tmp_path / "a" / "b")
    assert options.dotChecks
    text = (tmp_path / "a" / "b" / "start.dot").read_text()
    assert text.startswith("digraph")
    assert text.count("{") == text.count("}") == 3
    for part in ("Relu", "Add", "Call", "relu_out () float32"):
        assert part in text
    assert 'a\\"b' in text


@pytest.mark.parametrize("where", ["environment", "options"])
def test_dot_checkpoints_that_are_wanted(
    ir: popxl.Ir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    monkeypatch.delenv("POPART_DOT_CHECKS", raising=False)
    if where == "environment":
        monkeypatch.setenv("POPART_DOT_CHECKS", "one:two")
    else:
        ir._pb_ir.getSessionOptions().dotChecks = {"one", "two"}
    for check in ("two", "three"):
        ir.dot_checkpoint(check, tmp_path)
    ir.dot_checkpoint("one")
    assert {path.name for path in tmp_path.iterdir()} == {"one.dot", "two.dot"}


def test_low_level_handle_leads_back(ir: popxl.Ir):
    assert popxl.Ir._from_pb(ir._pb_ir) is ir
