"""The commit of the program that runs, for its logs."""

from __future__ import annotations

import subprocess
from functools import cache


@cache
def git_commit() -> str | None:
    """7 characters of the commit of the repository around the working directory, or None."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return result.stdout.strip()[:7] if result.returncode == 0 else None
