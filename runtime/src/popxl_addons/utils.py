"""Small tools: an ordered dict with positions, a checked weights dict, a timer."""

from __future__ import annotations

import collections
import logging
import re
import time
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

__all__ = ["OrderedDict", "WeightsDict", "timer"]

E = TypeVar("E")
_KT = TypeVar("_KT")
_VT = TypeVar("_VT")

# wandb is looked for when a timer ends, not at import: importing it takes seconds.
WANDB_IMPORTED = False


@contextmanager
def null_context() -> Iterator[None]:
    """A context manager without effect."""
    yield


def suffix_graph_name(name: str, suffix: str) -> str:
    """`name` without its `_subgraph(n)` parts, with `_suffix` appended."""
    return f"{_base_graph_name(name)}_{suffix}"


def _base_graph_name(name: str) -> str:
    return re.sub(r"_subgraph\(\d+\)", "", name)


def _wandb_run() -> Any:
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError:
        return None
    return wandb.run


@contextmanager
def timer(title: str | None = None, log_to_wandb: bool = True) -> Iterator[None]:
    """Log how long the block takes, in minutes; nothing is logged at the end if it raises.

    Args:
        title: what is timed.
        log_to_wandb: also set the summary key `<title>_mins` of an active wandb run.
    """
    title = title or "timer"
    logging.info("Starting %s", title)
    start = time.perf_counter()
    yield
    minutes = (time.perf_counter() - start) / 60
    logging.info("%s duration: %.2f mins", title, minutes)
    run = _wandb_run() if log_to_wandb else None
    if run is not None:
        run.summary[f"{title.lower().replace(' ', '_')}_mins"] = minutes


class OrderedDict(collections.OrderedDict[_KT, _VT]):
    """An ordered dict with access by position and one entry per line in its repr."""

    def idx(self, idx: int) -> _VT:
        """The value at position `idx`."""
        return list(self.values())[idx]

    def __repr__(self) -> str:
        lines = "".join(f"  {key!r}: {value!r},\n" for key, value in self.items())
        return f"{type(self).__name__}({{\n{lines}}})" if lines else f"{type(self).__name__}({{}})"


class WeightsDict(MutableMapping[Any, np.ndarray]):
    """Arrays by variable, checked on insertion.

    Raises:
        ValueError: a key is no Variable, or an array's dtype or shape is not the variable's
            (`dtype`, `shape_on_host`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.dict: dict[Any, np.ndarray] = {}
        self.update(dict(*args, **kwargs))

    def __getitem__(self, key: Any) -> np.ndarray:
        return self.dict[key]

    def __setitem__(self, key: Any, value: np.ndarray) -> None:
        from popxl.tensor import Variable

        if not isinstance(key, Variable):
            raise ValueError(f"WeightsDict: keys are popxl Variables, got {key!r}")
        dtype = key.dtype.as_numpy()
        if value.dtype != dtype:
            raise ValueError(f"WeightsDict: {key.name} has dtype {dtype}, the array {value.dtype}")
        if tuple(value.shape) != tuple(key.shape_on_host):
            raise ValueError(
                f"WeightsDict: {key.name} has host shape {tuple(key.shape_on_host)},"
                f" the array {tuple(value.shape)}"
            )
        self.dict[key] = value

    def __delitem__(self, key: Any) -> None:
        del self.dict[key]

    def __len__(self) -> int:
        return len(self.dict)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dict)


def overrides(cls: type, base_cls: type, method: str) -> bool:
    """Whether `cls` has its own version of `base_cls`'s `method`."""
    return getattr(cls, method, None) is not getattr(base_cls, method, None)


def duplicate_items(iterable: Iterable[E]) -> list[E]:
    """Items that occur more than once, in the order in which they were first seen."""
    counts: dict[E, int] = {}
    for item in iterable:
        counts[item] = counts.get(item, 0) + 1
    return [item for item, count in counts.items() if count > 1]
