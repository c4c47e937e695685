"""A small model, and the tensors that its original module would save."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from config.config import MagmaConfig
from tests.small_configs import small_config
from tests.utils.checkpoint_cases import State
from tests.utils.published_module import published_state
from utils.checkpoint_layout import configured_layout


@pytest.fixture
def config() -> MagmaConfig:
    return small_config()


@pytest.fixture
def generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**31)))


@pytest.fixture
def state(config: MagmaConfig, generator: torch.Generator) -> State:
    return published_state(config, configured_layout(config), generator)
