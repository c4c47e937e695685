"""What all tests of the application share: seeds, restored globals, small configurations."""

from __future__ import annotations

import logging
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from config.config import MagmaConfig
from tests.small_configs import small_config

if TYPE_CHECKING:
    from tests.reference.magma import ReferenceMagma

# Before anything imports torch: tensors this small gain nothing from threads, and on a busy machine
# threads that wait for each other make a test a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name: other numbers in every test, the same each run."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def restore_globals() -> Iterator[None]:
    """Puts logging's, numpy's and torch's global state back after each test.

    torch is left alone in a test that runs before anything has imported it, so that tests of the
    front end stay free of it.
    """
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global generator is what may leak
    torch_state = _torch_state()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    np.random.set_state(numpy_state)  # noqa: NPY002
    for restore, value in torch_state:
        restore(value)


def _torch_state() -> list[tuple[Callable, object]]:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_rng_state"):
        return []
    return [
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]


@pytest.fixture
def tiny_config() -> MagmaConfig:
    """The smallest model with every part: 48 pixels, 2 blocks, float32, one replica."""
    return small_config()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ReferenceMagma:
    """The model of the small sessions in PyTorch."""
    from tests.small_sessions import SIZES, reference_model

    return reference_model(tmp_path_factory.mktemp("reference"), **SIZES)
