"""Building a program reads its configuration and leaves it as it was."""

from __future__ import annotations

import copy

import pytest

from execution.program import build_program
from tests.small_configs import TENSOR_PARALLEL, small_config


@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_building_leaves_the_config_as_it_was(tensor_parallel: int):
    config = small_config(tensor_parallel=tensor_parallel, batch=2)
    before = copy.deepcopy(config)
    build_program(config)
    assert config == before


def test_the_comparison_sees_a_change():
    config = small_config()
    before = copy.deepcopy(config)
    config.transformer.sequence_length += config.image_tokens
    assert config != before
