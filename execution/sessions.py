"""Sessions of one model for different numbers of sequences, over the same weights."""

from __future__ import annotations

import gc
import logging
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import popxl_addons as addons

from config.config import MagmaConfig
from execution.cached import build_cached_program
from execution.engine import ENGINE_CHOICE, EngineOptions, NoRoomError, memory_and_files
from execution.program import build_program
from execution.report import memory_table
from execution.runs import MagmaSession, Runs, runs_of
from execution.weights import load_weights
from utils.collector import paused_collector
from utils.errors import UserError

SCHEMES = {"cached": build_cached_program, "recompute": build_program}
"""How tokens are computed, by name."""

MOST_SESSIONS = 2
"""Sessions that stay open, the last ones used: each has keys and values of its own."""

LARGEST_BATCH = 8
"""Sequences of a run at most, where nothing else is asked for."""

MOST_HALVINGS = 4
"""Sixteen parts save nearly all that can be saved; each part more makes planning longer."""

_log = logging.getLogger(__name__)


def check_scheme(scheme: str) -> None:
    """Check that there is a scheme of this name.

    Raises:
        UserError: there is none.
    """
    if scheme not in SCHEMES:
        raise UserError(f"unknown scheme {scheme!r}; there are {' and '.join(sorted(SCHEMES))}")


def build_session(
    config: MagmaConfig, scheme: str, engine: EngineOptions = ENGINE_CHOICE
) -> addons.TaskSession:
    """A session of a configuration; its variables have no values yet.

    Args:
        config: what to build; read, never written to.
        scheme: one of SCHEMES.
        engine: how it is run.

    Raises:
        UserError: the configuration does not fit together, there is no such scheme or device, or
            the budget of a plan alone is too small.
    """
    config.validate()
    check_scheme(scheme)
    return SCHEMES[scheme](config, engine)


def planned_memory(
    config: MagmaConfig,
    scheme: str,
    engine: EngineOptions,
    weights: Mapping[str, np.ndarray] | None = None,
) -> str:
    """The table of what a session would keep where; nothing is computed and no weight read.

    Args:
        config: what to plan for.
        scheme: one of SCHEMES.
        engine: how it would be run.
        weights: see :func:`enter_session`; how they are stored counts.

    Raises:
        UserError: see :func:`enter_session`.
    """
    with tempfile.TemporaryDirectory(prefix="magma-") as folder:
        path = Path(folder) / "memory.json"
        engine = replace(engine, memory_plan=path, plan_only=True)
        session, config = enter_session(config, scheme, engine, weights)
        session.__exit__(None, None, None)  # type: ignore[attr-defined]
        at_once = config.transformer.execution.prompts_at_once
        lines = [memory_table(path)]
        if at_once is not None:
            lines.append(f"prompts at once: {min(at_once, config.batch)} of {config.batch}")
        return "\n".join(lines)


def enter_session(
    config: MagmaConfig,
    scheme: str,
    engine: EngineOptions,
    weights: Mapping[str, np.ndarray] | None,
) -> tuple[MagmaSession, MagmaConfig]:
    """An entered session, with as many prompts at once as its budget has room for.

    Args:
        config: what to build; read, never written to.
        scheme: one of SCHEMES.
        engine: how it is run.
        weights: of :func:`modelling.mapping.model_weights`; None leaves them empty, in the
            configuration's precision.

    Returns:
        The session and what it was built of: the configuration, and in it the prompts at once where
        there is a budget.

    Raises:
        UserError: see :func:`build_session`; the budget is too small, or weights cannot be read.
    """
    *others, least = _ways_to_read(config, scheme, engine)
    for way in others:
        with suppress(NoRoomError):
            return _entered(way, scheme, engine, weights), way
        gc.collect()  # what was built would count as memory of the process
    return _entered(least, scheme, engine, weights), least


def _ways_to_read(config: MagmaConfig, scheme: str, engine: EngineOptions) -> list[MagmaConfig]:
    """The configuration with ever fewer prompts at once, where nothing says how many."""
    given = config.transformer.execution.prompts_at_once
    if engine.device_memory is None or scheme != "cached" or given is not None:
        return [config]
    ways = []
    for halvings in range(min((config.batch - 1).bit_length(), MOST_HALVINGS) + 1):
        ways.append(deepcopy(config))
        ways[-1].transformer.execution.prompts_at_once = -(-config.batch >> halvings)
    return ways


def _entered(
    config: MagmaConfig,
    scheme: str,
    engine: EngineOptions,
    weights: Mapping[str, np.ndarray] | None,
) -> MagmaSession:
    with paused_collector():
        session = build_session(config, scheme, engine)
        if weights is not None:
            load_weights(session, weights)
        with memory_and_files():
            session.__enter__()
    return session


@dataclass
class OpenSession:
    """An entered session with its weights.

    Attributes:
        session: the session.
        config: what it was built of.
        runs: its runs.
        user: whoever began the runs whose keys and values it holds.
    """

    session: MagmaSession
    config: MagmaConfig
    runs: Runs
    user: object = None


class OneSession:
    """The sessions of a model that has only one, opened by somebody else."""

    def __init__(self, session: MagmaSession, config: MagmaConfig, pad_id: int) -> None:
        """Takes an entered session of either scheme and what it was built of."""
        self.config, self.largest = config, config.batch
        self._open = OpenSession(session, config, runs_of(session, config, pad_id))

    def with_room(self, sequences: int) -> OpenSession:
        """The session; at most ``largest`` sequences fit."""
        return self._open

    def close(self) -> None:
        """Leaves the session to its owner."""


class Sessions:
    """Sessions that are built when a number of sequences is first asked for.

    All get the same arrays of weights, which are views of the mapped files where precisions agree:
    another session costs its keys and values, not another copy of the model.
    """

    def __init__(
        self,
        config: MagmaConfig,
        weights: Mapping[str, np.ndarray],
        scheme: str,
        pad_id: int,
        largest: int | None = None,
        trace: Path | None = None,
        engine: EngineOptions = ENGINE_CHOICE,
    ) -> None:
        """Builds nothing yet.

        Args:
            config: of the model; the number of sequences in it does not matter.
            weights: of :func:`modelling.mapping.model_weights`.
            scheme: one of SCHEMES.
            pad_id: id that fills unused positions.
            largest: sequences of a session at most.
            trace: folder in which each session writes the time and bytes of its phases,
                ``batch_N.json``, and what it keeps where, ``memory_N.json``.
            engine: how they are run.

        Raises:
            UserError: no such scheme, or no room for a sequence.
        """
        check_scheme(scheme)
        self.config = config
        self.largest = max(config.batch, LARGEST_BATCH) if largest is None else largest
        if self.largest < 1:
            raise UserError(f"max_batch is {largest}; it must be 1 or greater")
        self._weights, self._scheme, self._pad_id = weights, scheme, pad_id
        self._trace, self._engine = trace, engine
        # Sessions would have to share a budget.
        self._most = MOST_SESSIONS if engine.device_memory is engine.weights is None else 1
        self._open: dict[int, OpenSession] = {}

    def with_room(self, sequences: int) -> OpenSession:
        """A session for at least so many sequences, of which there are at most ``largest``.

        One that is open and has at most twice as many is preferred to building another.
        """
        fitting = [batch for batch in self._open if sequences <= batch <= 2 * sequences]
        batch = min(fitting, default=sequences)
        opened = self._open.pop(batch, None) or self._build(batch)
        self._open[batch] = opened  # the last one is the one used last
        return opened

    def _build(self, batch: int) -> OpenSession:
        while len(self._open) >= self._most:
            _leave(self._open.pop(next(iter(self._open))))
        config = self.config.with_batch(batch)
        engine = self._engine
        if self._trace is not None:
            trace, plan = (self._trace / f"{name}_{batch}.json" for name in ("batch", "memory"))
            engine = replace(engine, trace=trace, memory_plan=plan)
        session, config = enter_session(config, self._scheme, engine, self._weights)
        if (at_once := config.transformer.execution.prompts_at_once) is not None:
            _log.info("%d prompts are read %d at once", config.batch, min(at_once, config.batch))
        return OpenSession(session, config, runs_of(session, config, self._pad_id))

    def close(self) -> None:
        """Ends all sessions."""
        while self._open:
            _leave(self._open.popitem()[1])


def _leave(opened: OpenSession) -> None:
    opened.user = None
    opened.session.__exit__(None, None, None)  # type: ignore[attr-defined]
