"""What all tests of the repository share: the option that runs the long ones, and no deadlines."""

from __future__ import annotations

import pytest
from hypothesis import settings

# A busy machine is no fault of an example's.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--long-tests``."""
    parser.addoption(
        "--long-tests", action="store_true", help="run the tests marked long as well (minutes)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips the tests marked long unless ``--long-tests`` is given."""
    if config.getoption("--long-tests"):
        return
    skip = pytest.mark.skip(reason="a long test: run it with --long-tests")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(skip)
