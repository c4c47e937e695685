"""Keeps every sample of a benchmark, with what is needed to judge it, as one JSON file."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import machine

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "transformers", "popxl-torch")


@dataclass(frozen=True)
class Result:
    """One run of one benchmark.

    `rows` is the table as it is printed, `samples` every measured value behind it by name (the unit
    is part of the name), `setting` what was measured, `notes` one line each, `command` the program
    and its options, if the program is not `bench`.
    """

    bench: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    samples: dict[str, list[float]]
    setting: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    command: str = ""


def keep(result: Result, rates: list[machine.Rates]) -> Path:
    """Writes a result with date, commit, machine, the rates around it, and versions.

    Returns:
        The file, results/<date>-<bench>.json.
    """
    now = datetime.now().astimezone()
    content = {
        "date": now.isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": asdict(machine.describe()),
        "rates": [asdict(rate) for rate in rates],
        "versions": _versions(),
        **asdict(result),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y%m%d-%H%M%S}-{result.bench}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def newest(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The last result of every benchmark in a folder, by its name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        found[content["bench"]] = content
    return dict(sorted(found.items()))


def _commit() -> str:
    """The commit, with a + where files that git knows differ from it."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
