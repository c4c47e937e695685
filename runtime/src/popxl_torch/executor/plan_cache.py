"""Plans kept by the content of their program: in the process, and on disk where building is slow.

A record is JSON (see plan/portable.py). In the process the newest records are kept, for the next
session of an equal program. On disk they are kept under the Ir's ``cachePath`` (``POPXL_CACHE_DIR``
or ``POPART_CACHE_DIR``), once building the records of a session took more than a second. A file is
named by a digest of all that its record depends on; one that cannot be read, or was made by
something else, is reported in one line, ignored and written anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

import popxl_torch
from popxl_torch.ir.content import content_digest
from popxl_torch.ir.records import Program
from popxl_torch.plan.portable import NotPortableError
from popxl_torch.settings import Settings

_LOG = logging.getLogger("popxl_torch")
_FORMAT = "popxl-torch plan 1"
_IRRELEVANT = frozenset(
    {"device_memory", "weights", "prefetch", "cuda_graphs", "memory_plan", "trace", "debug"}
)
_MOST_BYTES = 1 << 28

DISK_FROM_S = 1.0
"""Seconds of building from which a session's records are written to disk."""

KEPT = 512
"""Records kept in the process."""

_memory: dict[str, str] = {}

T = TypeVar("T")


class PlanCache:
    """The records of one session."""

    def __init__(self, program: Program, settings: Settings, device: str) -> None:
        options = program.options
        self._folder = Path(options.cachePath) if options.enableEngineCaching else None
        # Where weights are kept, a trace or a log change no plan.
        kept = {n: getattr(settings, n) for n in settings.__slots__ if n not in _IRRELEVANT}
        versions = _versions() if self._folder else ()
        self._content = repr((content_digest(program), sorted(kept.items()), device, versions))
        self._spent_s = 0.0
        self._unsaved: dict[str, str] = {}

    def get(
        self,
        what: tuple[object, ...],
        build: Callable[[], T],
        dump: Callable[[T], Any],
        load: Callable[[Any], T],
    ) -> T:
        """A record that is kept, or else what ``build`` makes, which is kept from now on.

        Args:
            what: names the record among those of the program.
            build: makes it.
            dump: gives it as lists, dicts, texts and numbers.
            load: makes it of what ``dump`` gave; any exception refuses that.
        """
        key = hashlib.blake2b(repr((self._content, what)).encode(), digest_size=16).hexdigest()
        text = _memory.get(key) or self._read(key)
        if text is not None:
            try:
                found = load(json.loads(text))
                _keep(key, text)
                return found
            except Exception as error:
                self._refuse(key, error)
        start = time.perf_counter()
        built = build()
        self._spent_s += time.perf_counter() - start
        try:
            text = json.dumps(dump(built), separators=(",", ":"))
        except NotPortableError as reason:
            _LOG.info("a plan is not kept: it has %s", reason)
            return built
        _keep(key, text)
        if self._folder is not None:
            self._unsaved[key] = text
            if self._spent_s >= DISK_FROM_S:
                self._save(self._folder)
        return built

    # -- files: a line that says what it is, a line that is the record ----------------------------

    def _path(self, folder: Path, key: str) -> Path:
        return folder / f"popxl-torch-{key}.json"

    def _read(self, key: str) -> str | None:
        if self._folder is None:
            return None
        path = self._path(self._folder, key)
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES} bytes")
            head, _, text = path.read_text("utf-8").partition("\n")
            if head != _head(key, text):
                raise ValueError("another program's, cut short or changed")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            self._refuse(key, error)
            return None
        return text

    def _refuse(self, key: str, error: Exception) -> None:
        where = "of this process" if self._folder is None else str(self._path(self._folder, key))
        _LOG.warning("kept plan %s is ignored and made anew: %s", where, error)
        _memory.pop(key, None)

    def _save(self, folder: Path) -> None:
        """Write what is not on disk yet. A file is there whole or not at all."""
        for key, text in self._unsaved.items():
            path = self._path(folder, key)
            part = path.with_suffix(f".{uuid.uuid4().hex}.part")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                part.write_text(f"{_head(key, text)}\n{text}", "utf-8")
                part.replace(path)
            except OSError as error:
                _LOG.warning("plans cannot be kept in %s: %s", folder, error)
                self._folder = None
                with contextlib.suppress(OSError):
                    part.unlink()
                break
        self._unsaved.clear()


def _head(key: str, text: str) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return f"{_FORMAT} {key} {digest}"


def _keep(key: str, text: str) -> None:
    """Keep a record in the process, as the newest."""
    _memory.pop(key, None)
    _memory[key] = text
    while len(_memory) > KEPT:
        del _memory[next(iter(_memory))]


@functools.cache
def _versions() -> tuple[str, ...]:
    """Of torch, and of this package to the letter: passes make other plans when they change."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(popxl_torch.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return torch.__version__, digest.hexdigest()
