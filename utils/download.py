"""Downloads: the published checkpoint, with progress and resume, and pictures, within limits."""

from __future__ import annotations

import http.client
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from utils.errors import UserError

REPOSITORY = "Aleph-Alpha/magma-research"
"""Hugging Face repository of the published checkpoint."""

CHECKPOINT_FILE = "mp_rank_00_model_states.pt"
CHECKPOINT_BYTES = 12_993_416_264
"""Tensor data in the published file, which is a little larger."""

MAX_IMAGE_BYTES = 64 * 2**20
MAX_REDIRECTS = 5
_PIECE_BYTES = 1 << 16


def checkpoint_folder() -> Path:
    """Where the checkpoint is kept: the environment's DATASETS_DIR, else ``cache`` here."""
    return Path(os.environ.get("DATASETS_DIR") or "cache")


def fetch_checkpoint(folder: str | os.PathLike[str] | None = None) -> Path:
    """The published checkpoint's file; downloads it if ``folder`` lacks it.

    Shows progress, and goes on where an earlier download stopped.

    Args:
        folder: where the file is or goes; `checkpoint_folder` by default.

    Returns:
        Path of the complete file.

    Raises:
        UserError: no network, no space, or any other failure: what was tried, and how to get the
            file by hand.
    """
    target = Path(folder) if folder is not None else checkpoint_folder()
    path = target / CHECKPOINT_FILE
    if path.is_file():
        return path
    try:
        from huggingface_hub import hf_hub_download

        size_bytes = hub_file_bytes(REPOSITORY, CHECKPOINT_FILE)
        target.mkdir(parents=True, exist_ok=True)
        _require_space(target, size_bytes or CHECKPOINT_BYTES)
        return Path(hf_hub_download(REPOSITORY, CHECKPOINT_FILE, local_dir=target))
    except UserError:
        raise
    except Exception as error:  # the hub and its network layers raise many types
        reason = str(error).strip().rstrip(".")[:200]
        raise UserError(
            f"cannot download the checkpoint: tried {CHECKPOINT_FILE} of the Hugging Face "
            f"repository {REPOSITORY} ({type(error).__name__}: {reason}); download it by hand from "
            f"https://huggingface.co/{REPOSITORY}/resolve/main/{CHECKPOINT_FILE} and put it at "
            f"{path}, or name another file with --checkpoint"
        ) from error


def hub_file_bytes(repository: str, name: str) -> int | None:
    """Size of a file on the Hugging Face hub, None if the hub doesn't say.

    Asked before a download, because without a network this fails at once and says why, whereas the
    download retries for half a minute.

    Raises:
        Exception: of many types, where the hub cannot be reached or lacks the file.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    return get_hf_file_metadata(hf_hub_url(repository, name)).size


def _require_space(folder: Path, size_bytes: int) -> None:
    partial = folder / ".cache" / "huggingface" / "download"
    done_bytes = sum(p.stat().st_size for p in partial.glob("*.incomplete"))
    needed_bytes = size_bytes - done_bytes
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise UserError(
            f"{folder}: no space left for the checkpoint: {needed_bytes:,} bytes are needed, "
            f"{free_bytes:,} are free; free some or set DATASETS_DIR to another folder"
        )


def fetch_url(
    url: str, max_bytes: int = MAX_IMAGE_BYTES, timeout_s: float = 30.0, wait_s: float = 10.0
) -> bytes:
    """The content behind an http or https address.

    Args:
        url: the address; redirects are followed, at most `MAX_REDIRECTS`, to http or https only.
        max_bytes: larger content is refused as soon as it shows.
        timeout_s: limit of the whole download, name look-up included.
        wait_s: limit of connecting and of each wait for more data.

    Raises:
        UserError: another scheme, an unreachable host, a refusal by the server, too large or late.
    """
    _require_scheme(url)
    result: list[bytes | UserError] = []

    def work() -> None:
        try:
            result.append(_fetch(url, max_bytes, time.monotonic() + timeout_s, wait_s))
        except UserError as error:
            result.append(error)

    # A thread, because looking up a name and reading headers have no time limit of their own.
    thread = threading.Thread(target=work, daemon=True, name="fetch")
    thread.start()
    thread.join(timeout_s)
    if not result:
        raise UserError(f"{url}: the download took longer than {timeout_s:g} s; try again later")
    if isinstance(result[0], UserError):
        raise result[0]
    return result[0]


def _require_scheme(url: str) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is out of range
    except ValueError as error:
        raise UserError(f"{url}: is no web address: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise UserError(
            f"{url}: addresses of type {parts.scheme or 'none'} are not supported; "
            "expected http:// or https://"
        )
    if not parts.hostname:
        raise UserError(f"{url}: the address names no host")


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        try:
            _require_scheme(newurl)
        except UserError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https only: no files, no FTP, no data addresses."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener


def _fetch(url: str, max_bytes: int, deadline: float, wait_s: float) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "magma-image-fetcher/1.0"})
    try:
        with _opener().open(request, timeout=wait_s) as response:
            return _read_limited(url, response, max_bytes, deadline)
    except urllib.error.HTTPError as error:
        error.close()
        if "infinite loop" in str(error.msg):  # urllib's words for too many redirects
            raise UserError(f"{url}: more than {MAX_REDIRECTS} redirects, or a circle") from error
        raise UserError(f"{url}: the server answers {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise UserError(f"{url}: no answer within {wait_s:g} s; try again later") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise UserError(f"{url}: no answer within {wait_s:g} s; try again later") from error
        raise UserError(f"{url}: cannot reach the host: {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{url}: the download failed: {reason}") from error


def _read_limited(
    url: str, response: http.client.HTTPResponse, max_bytes: int, deadline: float
) -> bytes:
    stated = response.headers.get("Content-Length", "")
    promised_bytes = int(stated) if stated.isdecimal() else None
    content = bytearray()
    while True:
        if max(len(content), promised_bytes or 0) > max_bytes:
            raise UserError(f"{url}: the content is larger than the limit of {max_bytes:,} bytes")
        if time.monotonic() > deadline:
            raise UserError(f"{url}: the download took too long; try again later")
        # read1 returns what has come; read would wait for a full piece, however slowly it drips.
        piece = response.read1(_PIECE_BYTES)
        if not piece:
            break
        content += piece
    if promised_bytes is not None and len(content) < promised_bytes:
        raise UserError(
            f"{url}: the connection broke after {len(content):,} of {promised_bytes:,} bytes; "
            "try again"
        )
    return bytes(content)
