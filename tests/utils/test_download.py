"""Downloads against a server on this machine, and against none."""

from __future__ import annotations

import socket
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from utils import download
from utils.download import checkpoint_folder, fetch_checkpoint, fetch_url
from utils.errors import UserError

CONTENT = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    """Answers as the path asks."""

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, headers: dict[str, object], body: bytes = b"") -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        with suppress(ConnectionError):
            name, _, argument = self.path[1:].partition("/")
            getattr(self, f"get_{name}")(argument)

    def get_whole(self, _: str) -> None:
        self.answer(200, {"Content-Length": len(CONTENT)}, CONTENT)

    def get_agent(self, _: str) -> None:
        self.answer(200, {}, self.headers["User-Agent"].encode())

    def get_unsized(self, _: str) -> None:
        self.answer(200, {}, CONTENT)

    def get_endless(self, _: str) -> None:
        self.answer(200, {})
        while True:
            self.wfile.write(bytes(1 << 16))

    def get_claims(self, size: str) -> None:
        self.answer(200, {"Content-Length": size}, b"x")

    def get_status(self, code: str) -> None:
        self.answer(int(code), {"Content-Length": 0})

    def get_hop(self, count: str) -> None:
        left = int(count)
        target = f"/hop/{left - 1}" if left else "/whole"
        self.answer(302, {"Location": target, "Content-Length": 0})

    def get_circle(self, _: str) -> None:
        self.answer(301, {"Location": "/circle", "Content-Length": 0})

    def get_to(self, target: str) -> None:
        self.answer(302, {"Location": target, "Content-Length": 0})

    def get_silent(self, _: str) -> None:
        time.sleep(10)

    def get_drip(self, _: str) -> None:
        self.answer(200, {"Content-Length": 1000})
        for _i in range(100):
            self.wfile.write(b"x")
            time.sleep(0.1)

    def get_slow_headers(self, _: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for i in range(100):
            self.wfile.write(f"X-{i}: y\r\n".encode())
            time.sleep(0.1)

    def get_nonsense(self, _: str) -> None:
        self.wfile.write(b"\x00\xff nonsense\r\n\r\n")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def refusal(url: str, **limits: float) -> str:
    with pytest.raises(UserError) as error:
        fetch_url(url, **limits)
    message = str(error.value)
    assert message.startswith(f"{url}: ") or "redirect" in message or "addresses of" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", ["whole", "unsized", "hop/0", f"hop/{download.MAX_REDIRECTS - 1}"])
def test_content(server: str, path: str) -> None:
    assert fetch_url(f"{server}/{path}") == CONTENT


def test_requests_say_who_asks(server: str) -> None:
    assert b"magma" in fetch_url(f"{server}/agent")


def test_limit_is_inclusive(server: str) -> None:
    assert len(fetch_url(f"{server}/whole", max_bytes=len(CONTENT))) == len(CONTENT)
    for path in ("whole", "unsized"):
        message = refusal(f"{server}/{path}", max_bytes=len(CONTENT) - 1)
        assert "larger than the limit of 10,239 bytes" in message


def test_endless_content_is_cut(server: str) -> None:
    started = time.monotonic()
    assert "larger than" in refusal(f"{server}/endless", max_bytes=10**6)
    assert time.monotonic() - started < 5


def test_false_lengths(server: str) -> None:
    assert "broke after 1 of 500 bytes" in refusal(f"{server}/claims/500")
    assert "larger than" in refusal(f"{server}/claims/999999999999999")


@pytest.mark.parametrize("code", [400, 403, 404, 429, 500, 503])
def test_refusals_of_the_server(server: str, code: int) -> None:
    assert f"the server answers {code}" in refusal(f"{server}/status/{code}")


def test_redirects_are_limited(server: str) -> None:
    for path in (f"hop/{download.MAX_REDIRECTS}", "circle"):
        assert f"more than {download.MAX_REDIRECTS} redirects" in refusal(f"{server}/{path}")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_to_other_schemes_are_refused(server: str, target: str) -> None:
    message = refusal(f"{server}/to/{target}")
    assert "not supported" in message or "not allowed" in message
    assert target.split(":")[0] in message


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "addresses of type file are not supported"),
        ("ftp://127.0.0.1/a.png", "addresses of type ftp are not supported"),
        ("gopher://x", "addresses of type gopher are not supported"),
        ("picture.png", "addresses of type none are not supported"),
        ("http://", "names no host"),
        ("http://[::1", "is no web address"),
        ("http://127.0.0.1:99999/", "is no web address"),
        ("http://127.0.0.1/a b\n", "download failed"),
    ],
)
def test_addresses_that_cannot_work(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fetch_url(url)


def test_host_that_does_not_listen() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert "cannot reach the host" in refusal(f"http://127.0.0.1:{port}/x")


def test_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "Name or service not known" in refusal("http://host.invalid/x")


def test_waits_are_limited(server: str) -> None:
    started = time.monotonic()
    assert "no answer within 0.1 s" in refusal(f"{server}/silent", wait_s=0.1)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("path", ["drip", "slow_headers"])
def test_whole_download_is_limited(server: str, path: str) -> None:
    started = time.monotonic()
    message = refusal(f"{server}/{path}", timeout_s=0.3, wait_s=5)
    assert "too long" in message or "longer than 0.3 s" in message
    assert time.monotonic() - started < 5


def test_answer_that_is_no_http(server: str) -> None:
    assert "download failed" in refusal(f"{server}/nonsense")


# ---- the published checkpoint -------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Stands for the Hugging Face hub: records calls; "error" makes it fail."""
    record: dict[str, object] = {"size": 10}

    def metadata(url: str) -> object:
        record["url"] = url
        if "error" in record:
            raise record["error"]
        return namedtuple("metadata", "size")(record["size"])

    def fetch(repository: str, file: str, local_dir: Path) -> str:
        record["asked"] = (repository, file)
        (Path(local_dir) / file).write_bytes(b"weights")
        return str(Path(local_dir) / file)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return record


def test_checkpoint_is_fetched_once(tmp_path: Path, hub: dict[str, object]) -> None:
    folder = tmp_path / "new" / "folder"
    path = fetch_checkpoint(folder)
    assert path == folder / "mp_rank_00_model_states.pt"
    assert path.read_bytes() == b"weights"
    assert hub.pop("asked") == ("Aleph-Alpha/magma-research", "mp_rank_00_model_states.pt")
    assert fetch_checkpoint(folder) == path
    assert "asked" not in hub


def test_checkpoint_folder_follows_the_environment(
    tmp_path: Path, hub: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path))
    assert fetch_checkpoint().parent == tmp_path == checkpoint_folder()
    monkeypatch.delenv("DATASETS_DIR")
    assert checkpoint_folder() == Path("cache")


def test_failed_download_says_what_to_do(tmp_path: Path, hub: dict[str, object]) -> None:
    hub["error"] = ConnectionError("no route\nto host")
    with pytest.raises(UserError) as error:
        fetch_checkpoint(tmp_path)
    message = str(error.value)
    for words in (
        "Aleph-Alpha/magma-research",
        "ConnectionError: no route to host",
        "https://huggingface.co/Aleph-Alpha/magma-research/resolve/main/mp_rank_00_model_states.pt",
        str(tmp_path / "mp_rank_00_model_states.pt"),
        "--checkpoint",
    ):
        assert words in message
    assert "\n" not in message


def test_space_is_checked_before_the_download(tmp_path: Path, hub: dict[str, object]) -> None:
    hub["size"] = 10**18
    with pytest.raises(UserError, match="no space left for the checkpoint: 1,000,000,000,000,000"):
        fetch_checkpoint(tmp_path)
    assert "asked" not in hub


def test_no_network_is_one_line_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    started = time.monotonic()
    with pytest.raises(UserError, match="Name or service not known"):
        fetch_checkpoint(tmp_path)
    assert time.monotonic() - started < 10
    assert capfd.readouterr() == ("", "")
