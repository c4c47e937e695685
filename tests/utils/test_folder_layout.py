"""The table of a model folder: every weight of the checkpoint, in the order of execution."""

from __future__ import annotations

import itertools
import math

import pytest

from config.parsing import load_preset
from tests.small_configs import small_config
from utils.checkpoint_layout import expected_tensors
from utils.folder_layout import folder_embedding_rows, folder_tensors, slab_of


def test_slabs_are_contiguous_and_stand_in_the_order_of_execution() -> None:
    slabs = list(dict.fromkeys(slab_of(name) for name in folder_tensors(small_config())))
    assert slabs == [
        *("stem", "layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer4.0", "layer4.1"),
        *("projection", "embedding", "decoder.0", "decoder.1", "lm_head"),
    ]
    names = [slab_of(name) for name in folder_tensors(small_config())]
    assert sum(a != b for a, b in itertools.pairwise(names)) == len(slabs) - 1


def test_blocks_are_ordered_by_number_not_by_name() -> None:
    slabs = dict.fromkeys(slab_of(name) for name in folder_tensors(small_config(layers=11)))
    assert [s for s in slabs if s.startswith("decoder")] == [f"decoder.{i}" for i in range(11)]


def test_it_holds_as_many_numbers_as_the_checkpoint_and_the_spare_rows() -> None:
    config = small_config()
    weights = [e for e in expected_tensors(config).values() if e.kind.required]
    spare = folder_embedding_rows(config) - config.transformer.embedding.real_vocab_size
    expected = sum(math.prod(e.shape) for e in weights) + spare * config.transformer.hidden_size
    assert sum(math.prod(e.shape) for e in folder_tensors(config).values()) == expected


@pytest.mark.parametrize("preset", ["tiny", "magma_v1_500"])
def test_the_embedding_has_rows_for_every_number_of_shards(preset: str) -> None:
    lm = load_preset(preset).transformer
    rows = folder_embedding_rows(load_preset(preset))
    assert all(
        r * lm.embedding.rows_per_shard(r) <= rows
        for r in range(1, lm.attention.heads + 1)
        if lm.attention.heads % r == 0
    )


def test_a_name_of_no_phase_is_a_defect() -> None:
    with pytest.raises(ValueError, match="belongs to no phase"):
        slab_of("class_head.weight")
