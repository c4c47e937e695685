"""Phases: which graphs, how many buffers, and how often replicas meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import popxl
import pytest

from config.config import MagmaConfig
from config.parsing import load_preset
from execution.phases import Phases, build_phases, call_phase
from modelling.gptj.decoder import DecoderBlock
from tests.small_configs import small_config

# Of the published model: 3 convolutions and 3 batch norms of 4 vectors; a block has the same, and
# the first of each layer one of each more; projection and layer norm have 2 each.
BUFFERS_OF_STEM, BUFFERS_OF_BLOCK, BUFFERS_OF_FIRST_BLOCK, BUFFERS_OF_PROJECTION = 15, 15, 20, 4


@pytest.fixture(scope="module")
def built() -> Callable[[MagmaConfig], Phases]:
    """Makes the phases of a configuration, each in an Ir of its own."""
    alive = []

    def make(config: MagmaConfig) -> Phases:
        ir = popxl.Ir(replication=config.tensor_parallel)
        alive.append(ir)
        with ir.main_graph, popxl.in_sequence():
            return build_phases(config)

    return make


def op_kinds(graph: popxl.Graph) -> Counter[str]:
    """How often each kind of op occurs in a graph and all that it calls."""
    kinds = Counter(op.opType() for op in graph._pb_graph.getOps())
    for called in graph.called_graphs:
        kinds += op_kinds(called)
    return kinds


def loading(graph: popxl.Graph) -> set[popxl.Graph]:
    """Of a graph and all that it calls, those that load weights."""
    ops = graph._pb_graph.getOps()
    own = {graph} if any(op.opType() == "RemoteLoad" for op in ops) else set()
    return own.union(*map(loading, graph.called_graphs))


def buffers(phase) -> int:
    return phase.buffers.len_flat()


@pytest.fixture(scope="module")
def release(built) -> Phases:
    return built(load_preset("magma_v1_500"))


def test_published_encoder_shares_buffers_between_repeated_blocks(release: Phases):
    sizes = [(buffers(phase), len(phase.keys)) for phase in release.image_prefix]
    blocks = [(6, 8, 18, 8)[layer] for layer in range(4)]
    expected = [(BUFFERS_OF_STEM, 1)]
    for count in blocks:
        expected += [(BUFFERS_OF_FIRST_BLOCK, 1), (BUFFERS_OF_BLOCK, count - 1)]
    assert sizes == [*expected, (BUFFERS_OF_PROJECTION, 1)]
    assert sum(size for size, _ in sizes) == 159
    assert sum(size * entries for size, entries in sizes) == 639


def test_published_language_model_has_a_buffer_per_weight_and_an_entry_per_layer(release: Phases):
    assert (buffers(release.embedding), len(release.embedding.keys)) == (1, 1)
    assert (buffers(release.decoder), len(release.decoder.keys)) == (12, 28)
    assert (buffers(release.lm_head), len(release.lm_head.keys)) == (4, 1)


def test_published_sizes_come_from_the_graphs(release: Phases):
    assert release.image_prefix[-1].result.shape == (1, 144, 4096)
    assert release.embedding.result.shape == (500, 4096)
    assert release.decoder.result.shape == (644, 4096)
    assert release.lm_head.result.shape == (644, 12600)


def test_weights_are_cut_as_the_published_layout_says(release: Phases):
    shapes = {name: spec.shape for name, spec in release.decoder.factories.to_dict().items()}
    assert shapes["attention.heads.qkv.weight"] == (4096, 3072)
    assert shapes["attention.output.weight"] == (1024, 4096)
    assert shapes["feed_forward.intermediate.weight"] == (4096, 4096)
    assert shapes["feed_forward.output.weight"] == (4096, 4096)
    assert shapes["ff_adapter.compress.weight"] == (4096, 256)
    assert shapes["ff_adapter.expand.weight"] == (256, 4096)
    assert release.embedding.factories.to_dict()["word.weight"].shape == (12576, 4096)


@pytest.mark.parametrize(("mode", "reductions"), [("normal", 2), (None, 1)])
def test_a_block_meets_its_neighbours_as_seldom_as_possible(
    built, mode: str | None, reductions: int
):
    phases = built(small_config(tensor_parallel=2, adapter_mode=mode))
    kinds = op_kinds(phases.decoder.graph.graph)
    assert sum(n for kind, n in kinds.items() if "AllReduce" in kind) == reductions


def test_one_replica_needs_no_collective(built):
    phases = built(small_config(tensor_parallel=1))
    for phase in phases:
        assert not [kind for kind in op_kinds(phase.graph.graph) if "Replicated" in kind]


@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (3, 2, 1, 2)])
def test_a_layer_of_one_block_has_no_repeated_phase(built, blocks: tuple[int, int, int, int]):
    phases = built(small_config(visual_layers=blocks))
    keys = [key for phase in phases.image_prefix for key in phase.keys]
    expected = [
        f"image_prefix.enc.layer.{n}.{j}" for n, c in enumerate(blocks, 1) for j in range(c)
    ]
    assert keys == ["image_prefix.enc.stem", *expected, "image_prefix"]


def test_a_phase_is_loaded_by_one_graph_wherever_it_is_called():
    config = small_config()
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        phase = build_phases(config).decoder
        for rows in (2, 3):
            x = popxl.constant(np.zeros((rows, phase.result.shape[1])), phase.result.dtype)
            call_phase(phase.resized(DecoderBlock(config.transformer), [x.spec]), x)
    assert loading(ir.main_graph) == {phase.load.graph}
    assert op_kinds(phase.load.graph)["RemoteLoad"] == buffers(phase)
