"""Downloads: checked by hash, continued where they stopped, tried at the next source, and shared by processes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as small

from twoviews.data import download

BLOB = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()
SHA = hashlib.sha256(BLOB).hexdigest()


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch, _offline: None) -> None:
    """Let this process connect to itself, and to nothing else."""
    real = socket.socket.__mro__[1].connect  # type: ignore[attr-defined]

    def connect(self: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1", f"a test tried to reach {address}"
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setenv("no_proxy", "*")


@dataclasses.dataclass
class Server:
    """Serves one file.

    Args:
        blob: the file.
        breaks: numbers of bytes after which an answer breaks off, one per answer.
        ranges: whether it can start in the middle.
        kind: Content-Type.
        length: whether it sends a Content-Length.
        shifted: error of the position that a 206 names.
        hold: every answer waits for it.
        status: of every answer, if not 200.
        asked: the Range of every request so far.
    """

    blob: bytes
    breaks: list[int] = dataclasses.field(default_factory=list)
    ranges: bool = True
    kind: str = ""
    length: bool = True
    shifted: int = 0
    hold: threading.Event | None = None
    status: int = 200
    asked: list[str] = dataclasses.field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/file"


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, served: Server, *words: Any) -> None:
        self.served = served
        super().__init__(*words)

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        served, wanted = self.served, self.headers.get("Range", "")
        served.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and served.ranges else 0
        if served.status != 200 or start >= len(served.blob):
            self.send_error(served.status if served.status != 200 else 416)
            return
        if served.hold is not None:
            served.hold.wait(30)
        rest = served.blob[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + served.shifted}-{len(served.blob) - 1}/{len(served.blob)}")
        if served.kind:
            self.send_header("Content-Type", served.kind)
        if served.length:
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: served.breaks.pop(0)] if served.breaks else rest)
        self.close_connection = True


Serve = Callable[[Server], Server]


@pytest.fixture
def serve(loopback: None) -> Iterator[Serve]:
    running: list[http.server.ThreadingHTTPServer] = []

    def start(served: Server) -> Server:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, served))
        threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
        running.append(server)
        served.port = server.server_port
        return served

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def fetch(path: Path, *servers: Server) -> Path:
    return download.fetch([server.url for server in servers], path, sha256=SHA, size=len(BLOB), title="noise")


def test_a_file_is_downloaded_once_and_only_its_lock_stays_beside_it(tmp_path: Path, serve: Serve) -> None:
    server = serve(Server(BLOB))
    path = tmp_path / "new/folder/file"
    assert fetch(path, server) == path
    assert path.read_bytes() == BLOB
    assert fetch(path, server).read_bytes() == BLOB
    assert server.asked == [""]
    assert {p.name for p in path.parent.iterdir()} == {"file", "file.lock"}


# ---- broken connections ----


@pytest.mark.parametrize("at", [0.0, 1e-6, 0.1, 0.25, 0.3334, 0.5, 0.6, 0.75, 0.9, 0.999999])
def test_d2_a_broken_download_continues_where_it_stopped(tmp_path: Path, serve: Serve, at: float) -> None:
    stop = round(at * len(BLOB))
    server = serve(Server(BLOB, breaks=[stop, 0, 0, 0]))
    with pytest.raises(ValueError, match="the connection broke after"):
        fetch(tmp_path / "file", server)
    assert (tmp_path / "file.part").stat().st_size == stop
    assert not (tmp_path / "file").exists()
    server.breaks.clear()
    server.asked.clear()
    assert fetch(tmp_path / "file", server).read_bytes() == BLOB
    assert server.asked == ([f"bytes={stop}-"] if stop else [""])


def test_one_call_continues_while_bytes_arrive(tmp_path: Path, serve: Serve) -> None:
    server = serve(Server(BLOB, breaks=[1_000_000, 1_200_000]))
    assert fetch(tmp_path / "file", server).read_bytes() == BLOB
    assert server.asked == ["", "bytes=1000000-", "bytes=2200000-"]


def test_a_break_is_noticed_where_the_server_sends_no_length(tmp_path: Path, serve: Serve) -> None:
    server = serve(Server(BLOB, length=False, breaks=[1_000_000]))
    assert fetch(tmp_path / "file", server).read_bytes() == BLOB
    assert server.asked == ["", "bytes=1000000-"]


def test_a_server_without_ranges_starts_again(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "file.part").write_bytes(BLOB[:1_000_000])
    assert fetch(tmp_path / "file", serve(Server(BLOB, ranges=False))).read_bytes() == BLOB


def test_a_complete_part_is_only_checked(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "file.part").write_bytes(BLOB)
    assert fetch(tmp_path / "file", serve(Server(BLOB))).read_bytes() == BLOB


def test_after_a_wrong_start_the_download_starts_again(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "file.part").write_bytes(b"<html>" + bytes(1000))
    server = serve(Server(BLOB))
    assert fetch(tmp_path / "file", server).read_bytes() == BLOB
    assert server.asked == ["bytes=1006-", ""]


def test_an_answer_for_another_position_is_not_appended(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "file.part").write_bytes(BLOB[:1_000_000])
    server = serve(Server(BLOB, shifted=5))
    assert fetch(tmp_path / "file", server).read_bytes() == BLOB
    assert server.asked == ["bytes=1000000-", ""], "the answer for another position is discarded"


def test_a_login_page_does_not_shorten_a_long_part(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "file.part").write_bytes(BLOB[:2_000_000])
    for page in (Server(b"<html>sign in</html>", kind="text/html", ranges=False), Server(b"<html>sign in</html>", ranges=False)):
        with pytest.raises(ValueError, match="could not be downloaded"):
            fetch(tmp_path / "file", serve(page))
    (tmp_path / "file.part").write_bytes(BLOB[:2_000_000])
    with pytest.raises(ValueError, match="the connection broke"):  # a mirror without ranges that breaks off before 2 MB
        fetch(tmp_path / "file", serve(Server(BLOB, ranges=False, breaks=[100_000])))
    assert (tmp_path / "file.part").read_bytes() == BLOB[:2_000_000]
    good = serve(Server(BLOB))
    assert fetch(tmp_path / "file", good).read_bytes() == BLOB
    assert good.asked == ["bytes=2000000-"]


# ---- sources that fail ----


def test_the_next_source_is_used_where_one_fails(tmp_path: Path, serve: Serve) -> None:
    servers = [serve(Server(BLOB, status=503)), serve(Server(b"<html>sign in</html>")), serve(Server(BLOB[::-1])), serve(Server(BLOB))]
    assert fetch(tmp_path / "file", *servers).read_bytes() == BLOB
    assert [len(server.asked) for server in servers] == [1, 1, 1, 1]


def test_if_all_sources_fail_each_is_named_with_its_reason(tmp_path: Path, serve: Serve) -> None:
    servers = [serve(Server(BLOB, status=503)), serve(Server(b"<html>sign in</html>")), serve(Server(BLOB[::-1]))]
    with pytest.raises(ValueError, match="noise: could not be downloaded") as refused:
        fetch(tmp_path / "file", *servers)
    text = str(refused.value)
    assert "\n" not in text
    for server in servers:
        assert server.url in text
    for reason in ("HTTP 503", "a web page, not the file", "another file: SHA-256", "data_dir=<that file>"):
        assert reason in text
    assert not (tmp_path / "file.part").exists()


def test_an_endless_answer_stops_at_the_size_of_the_file(tmp_path: Path, serve: Serve) -> None:
    with pytest.raises(ValueError, match=r"larger than the file, which has 3\.0 MB"):
        fetch(tmp_path / "file", serve(Server(BLOB * 3, length=False)))
    assert not (tmp_path / "file.part").exists()


def test_a_server_that_has_nothing_is_a_failed_source(tmp_path: Path, serve: Serve) -> None:
    with pytest.raises(ValueError, match="HTTP 416"):
        fetch(tmp_path / "file", serve(Server(b"")))


# ---- the disk ----


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot be written"):
        fetch(tmp_path / "file" / "below", serve(Server(BLOB)))


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(ValueError, match=r"file cannot be written|Is a directory"):
        fetch(tmp_path / "file", serve(Server(BLOB)))


def test_c3_a_full_disk_is_reported_with_the_megabytes_needed(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(ValueError, match=r"3 MB needed, 1 MB free"):
        fetch(tmp_path / "file", serve(Server(BLOB)))


def test_d2_two_processes_share_one_download(tmp_path: Path, serve: Serve) -> None:
    server = serve(Server(BLOB, hold=threading.Event()))
    call = f"fetch([{server.url!r}], Path('file'), sha256={SHA!r}, size={len(BLOB)}, title='noise')"
    code = f"from pathlib import Path; from twoviews.data.download import fetch; {call}"
    # without the guard of `environment`, because these processes connect to this one
    env = {**small.environment(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "no_proxy": "*"}

    def start() -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True, **pipes)

    first = start()
    while not server.asked and first.poll() is None:
        time.sleep(0.05)
    second = start()
    assert second.stdout is not None
    line = second.stdout.readline()  # printed while the answer to the first process is held
    assert server.hold is not None
    server.hold.set()
    out = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], out
    assert "another process is downloading file: waiting for it" in line
    assert server.asked == [""], "both downloaded"
    assert (tmp_path / "file").read_bytes() == BLOB
