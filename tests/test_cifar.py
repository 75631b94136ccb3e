"""CIFAR's official archives: read exactly where they are whole, refused in one line where they are not, downloaded once and resumed."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as small

from twoviews.data import cifar, dataset, download, pickles

TRAIN, TEST = 1000, 1000  # images a batch file: 5 x 1000 + 1000
Files = dict[str, bytes]


# ---- archives in the true format: pickles as Python 2 wrote them ----


class _Python2(pickle._Pickler):  # the pure one: its table of writers can be changed
    """Writes `str` where bytes are given, and numpy under its old name, as the official files do (protocol 2)."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def _save_str(self, text: bytes) -> None:
        self.write(pickle.BINSTRING + len(text).to_bytes(4, "little") + text)
        self.memoize(text)

    def _save_text(self, text: str) -> None:
        self._save_str(text.encode("latin1"))

    dispatch[bytes], dispatch[str] = _save_str, _save_text

    def save_global(self, thing: Any, name: str | None = None) -> None:
        if getattr(thing, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(thing)
        else:
            super().save_global(thing, name)


def python2(value: object) -> bytes:
    out = io.BytesIO()
    _Python2(out, protocol=2).dump(value)
    return out.getvalue()


def published(source: cifar.Source, *, seed: int = 0) -> tuple[Files, dict[str, np.ndarray]]:
    """The batch files of a data set of noise, and what a reader must find."""
    random = np.random.default_rng(seed)
    files: Files = {}
    found: dict[str, list[np.ndarray]] = {"train_images": [], "train_labels": [], "test_images": [], "test_labels": []}
    for split, names, each in (("train", source.train, TRAIN), ("test", source.test, TEST)):
        for name in names:
            pixels = random.integers(0, 256, (each, 3072), np.uint8)
            labels = random.integers(0, source.classes, each)
            batch = {
                b"batch_label": b"noise",
                source.labels: labels.tolist(),
                b"data": pixels,
                b"filenames": [b"%d.png" % i for i in range(each)],
            }
            if source.labels == b"fine_labels":
                batch[b"coarse_labels"] = [0] * each
            files[name] = python2(batch)
            found[f"{split}_images"].append(pixels.reshape(-1, 3, 32, 32))
            found[f"{split}_labels"].append(labels)
    names = [name.encode() for name in (source.order or [f"class{i}" for i in range(source.classes)])]
    files[source.meta[0]] = python2({source.names: names, b"num_vis": 3072})
    return files, {key: np.concatenate(parts) for key, parts in found.items()}


Member = tuple[tarfile.TarInfo, bytes]


def members(source: cifar.Source, files: Files) -> list[Member]:
    out = []
    for name, blob in {"readme.html": b"<html>", **files}.items():
        info = tarfile.TarInfo(f"{source.folder}/{name}")
        info.size = len(blob)
        out.append((info, blob))
    return out


def archive(path: Path, parts: list[Member]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for info, blob in parts:
            tar.addfile(info, io.BytesIO(blob))
    return path


def of(source: cifar.Source, path: Path) -> cifar.Source:
    """The same source as if `path` were what its authors published: what lies behind the hash is under test."""
    return dataclasses.replace(source, sha256=download.digest(path))


def md5s(source: cifar.Source, files: Files) -> cifar.Source:
    def of_files(names: dict[str, str]) -> dict[str, str]:
        return {name: hashlib.md5(files[name], usedforsecurity=False).hexdigest() for name in names}

    (meta,) = of_files({source.meta[0]: ""}).items()
    return dataclasses.replace(source, train=of_files(source.train), test=of_files(source.test), meta=meta)


@pytest.fixture(scope="module")
def ten() -> tuple[Files, dict[str, np.ndarray]]:
    return published(cifar.CIFAR10)


@pytest.mark.parametrize("source", [cifar.CIFAR10, cifar.CIFAR100], ids=lambda source: source.key)
def test_every_image_and_label_of_a_good_archive_and_of_its_folder_is_read(tmp_path: Path, source: cifar.Source) -> None:
    files, expected = published(source)
    path = archive(tmp_path / source.archive, members(source, files))
    (tmp_path / source.folder).mkdir()
    for name, blob in files.items():
        (tmp_path / source.folder / name).write_bytes(blob)
    source = md5s(of(source, path), files)
    for found in (cifar.from_archive(source, path), cifar.from_folder(source, tmp_path / source.folder)):
        assert found.title == source.title
        assert len(found.classes) == source.classes
        for key, value in expected.items():
            assert np.array_equal(getattr(found, key), value), key
        assert len(found.train_images) + len(found.test_images) == TRAIN * len(source.train) + TEST


def test_class_names_are_the_archives(tmp_path: Path, ten: tuple[Files, dict[str, np.ndarray]]) -> None:
    path = archive(tmp_path / "a.tar.gz", members(cifar.CIFAR10, ten[0]))
    assert cifar.from_archive(of(cifar.CIFAR10, path), path).classes == cifar.CLASSES


def test_data_dir_may_be_the_archive_its_folder_or_a_folder_with_one_of_them(
    tmp_path: Path, ten: tuple[Files, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cifar.CIFAR10
    path = archive(tmp_path / source.archive, members(source, ten[0]))
    folder = tmp_path / "extracted" / source.folder
    folder.mkdir(parents=True)
    for name, blob in ten[0].items():
        (folder / name).write_bytes(blob)
    monkeypatch.setattr(cifar, "CIFAR10", md5s(of(source, path), ten[0]))
    digests = {cifar.read(str(place)).digest() for place in (path, tmp_path, folder, folder.parent)}
    assert len(digests) == 1
    monkeypatch.chdir(tmp_path)
    folder.parent.rename(tmp_path / "data")
    assert cifar.read(None).digest() in digests  # what torchvision left in data/
    data = dataset.load("cifar10", str(path))
    assert data.title == "CIFAR-10"
    assert len(data.val_rows) == TRAIN * 5 // 10


# ---- what is not the published archive ----


def test_d1_wrong_archives_are_named_for_what_they_are(tmp_path: Path, ten: tuple[Files, dict[str, np.ndarray]]) -> None:
    path = archive(tmp_path / "whole.tar.gz", members(cifar.CIFAR10, ten[0]))
    source, blob = of(cifar.CIFAR10, path), path.read_bytes()
    flipped = bytearray(blob)
    flipped[len(blob) // 2] ^= 1
    cases = {"cut": blob[: len(blob) // 2], "flipped": bytes(flipped), "empty": b"", "page": b"<!doctype html>\n<HTML><body>log in</body>"}
    for name, content in cases.items():
        wrong = tmp_path / name
        wrong.write_bytes(content)
        with pytest.raises(ValueError, match="is not the published archive") as refused:
            cifar.from_archive(source, wrong)
        text = str(refused.value)
        assert "\n" not in text
        assert str(wrong) in text
        assert "fetch it again" in text
        assert ("a web page" in text) == (name == "page")


def _link(name: str, kind: bytes) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info, b""


def _plain(name: str, blob: bytes = b"x") -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(blob)
    return info, blob


class _Bomb:
    """Writes a file when it is unpickled freely."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.marker, "ran")


FIRST = f"{cifar.CIFAR10.folder}/data_batch_1"
ODD: dict[
    str, tuple[Callable[[list[Member]], list[Member]], str]
] = {  # what is done to a good archive, and what is said ("": read as ever)
    "a member above the folder": (lambda parts: [_plain("../evil"), *parts], ""),
    "an absolute member": (lambda parts: [_plain("/twoviews-evil"), *parts], ""),
    "a member that only ends like a batch": (lambda parts: [_plain(f"../{FIRST}"), *parts], ""),
    "a symlink in a batch's place": (
        lambda parts: [_link(FIRST, tarfile.SYMTYPE)] + [p for p in parts if p[0].name != FIRST],
        "lacks data_batch_1",
    ),
    "a hard link in a batch's place": (
        lambda parts: [_link(FIRST, tarfile.LNKTYPE)] + [p for p in parts if p[0].name != FIRST],
        "lacks data_batch_1",
    ),
    "a device in a batch's place": (
        lambda parts: [_link(FIRST, tarfile.CHRTYPE)] + [p for p in parts if p[0].name != FIRST],
        "lacks data_batch_1",
    ),
    "a batch twice": (lambda parts: [*parts, parts[1]], "twice"),
    "a batch missing": (lambda parts: parts[:2] + parts[3:], "lacks data_batch_2"),
    "no class names": (lambda parts: parts[:-1], "lacks batches.meta"),
    "thousands of members": (lambda parts: [_plain(f"{i}") for i in range(3000)] + parts, ""),
    "a sparse file in a batch's place": (
        lambda parts: [_link(FIRST, tarfile.GNUTYPE_SPARSE)] + [p for p in parts if p[0].name != FIRST],
        "lacks data_batch_1|is damaged",
    ),
    "an empty batch": (lambda parts: [_plain(FIRST, b"")] + [p for p in parts if p[0].name != FIRST], "data_batch_1: not a batch"),
}


@pytest.mark.parametrize("case", ODD)
def test_d1_archives_with_the_published_hash_but_odd_members_are_refused_or_read_past(
    tmp_path: Path, ten: tuple[Files, dict[str, np.ndarray]], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # where a reader that extracts would write
    change, says = ODD[case]
    path = archive(tmp_path / "odd.tar.gz", change(members(cifar.CIFAR10, ten[0])))
    before = sorted(tmp_path.parent.rglob("*"))
    if says:
        with pytest.raises(ValueError, match=says) as refused:
            cifar.from_archive(of(cifar.CIFAR10, path), path)
        assert "\n" not in str(refused.value)
    else:
        found = cifar.from_archive(of(cifar.CIFAR10, path), path)
        assert np.array_equal(found.train_images, ten[1]["train_images"])
    assert sorted(tmp_path.parent.rglob("*")) == before, "reading wrote a file"
    assert not Path("/twoviews-evil").exists()


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_d1_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    monkeypatch.setattr(cifar, "UNPACKED", 30_000_000)
    path = tmp_path / "bomb.tar.gz"
    info = tarfile.TarInfo(FIRST)
    info.size, info.type = 20_000_000_000, kind
    with gzip.open(path, "wb", compresslevel=1) as packed:
        packed.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(60):
            packed.write(bytes(1_000_000))
    with pytest.raises(ValueError, match="unpacks to more than a data set of this size can"):
        cifar.from_archive(of(cifar.CIFAR10, path), path)


def test_d1_archives_that_are_cut_or_damaged_inside_are_refused(tmp_path: Path, ten: tuple[Files, dict[str, np.ndarray]]) -> None:
    whole = archive(tmp_path / "whole.tar.gz", members(cifar.CIFAR10, ten[0])).read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 3 : len(whole) // 3 + 1000] = bytes(1000)
    for name, blob in {"cut": whole[: len(whole) * 2 // 3], "damaged": bytes(damaged), "text": b"no archive at all"}.items():
        path = tmp_path / name
        path.write_bytes(blob)
        with pytest.raises(ValueError, match=r"is damaged|lacks") as refused:
            cifar.from_archive(of(cifar.CIFAR10, path), path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({b"data": [1, 2, 3]}, "expected pixels as uint8"),
        ({b"data": np.zeros((1000, 3071), np.uint8)}, "expected pixels as uint8"),
        ({b"data": np.zeros((0, 3072), np.uint8)}, "expected pixels as uint8"),
        ({b"data": np.zeros((1000, 3072), np.int64)}, "expected an array of bytes"),
        ({b"labels": [0] * 999}, "expected 1000 labels from 0 to 9"),
        ({b"labels": [0.5] * 1000}, "expected 1000 labels"),
        ({b"labels": [10] * 1000}, "expected 1000 labels"),
        ({b"labels": [-1] * 1000}, "expected 1000 labels"),
        ({b"labels": [2**70] * 1000}, "expected 1000 labels"),
    ],
)
def test_d1_batches_of_another_form_are_refused(
    tmp_path: Path, ten: tuple[Files, dict[str, np.ndarray]], change: dict[bytes, Any], says: str
) -> None:
    batch = pickles.load(ten[0]["data_batch_3"], "data_batch_3") | change
    path = archive(tmp_path / "a.tar.gz", members(cifar.CIFAR10, {**ten[0], "data_batch_3": python2(batch)}))
    with pytest.raises(ValueError, match=says):
        cifar.from_archive(of(cifar.CIFAR10, path), path)


def test_d1_a_folder_with_a_changed_file_is_refused(tmp_path: Path, ten: tuple[Files, dict[str, np.ndarray]]) -> None:
    for name, blob in ten[0].items():
        (tmp_path / name).write_bytes(blob)
    source = md5s(cifar.CIFAR10, ten[0])
    (tmp_path / "data_batch_4").write_bytes(ten[0]["data_batch_5"])
    with pytest.raises(ValueError, match=r"data_batch_4 is not the published file"):
        cifar.from_folder(source, tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(ValueError, match=r"data_batch_4: No such file"):
        cifar.from_folder(source, tmp_path)


# ---- pickles that would do something ----


def payloads(marker: Path) -> dict[str, bytes]:
    """Pickles that act when they are read freely; each would leave `marker` or take a terabyte."""
    path = str(marker).encode()
    touch = b"cposix\nsystem\n(S'touch " + path + b"'\ntR."
    return {
        "reduce": pickle.dumps(_Bomb(marker)),
        "reduce, protocol 0": pickle.dumps(_Bomb(marker), protocol=0),
        "nested": pickle.dumps({b"data": [1, {b"x": _Bomb(marker)}]}),
        "system": touch,
        "builtins": b"cbuiltins\nexec\n(S'open(\"" + path + b'", "w")\'\ntR.',
        "eval by getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(S'touch " + path + b"'\ntR.",
        "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x14ndarray.__class__.__\x93.",
        "numpy's own loader": b"cnumpy\nload\n(S'" + path + b"'\ntR.",
        "a terabyte by ndarray": b"cnumpy\nndarray\n((L1000000000000L\ntS'u1'\ntR.",
        "a terabyte by _reconstruct": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L1000000000000L\ntS'b'\ntR.",
        "a codec": b"c_codecs\nencode\n(Vaaaa\nVrot13\ntR.",
        "a state for what it may call": b"cnumpy\ndtype\n(N}S'__defaults__'\nNstb.",
        "a state for the array's stand-in": b"cnumpy\nndarray\n(N}S'__new__'\nNstb.",
        "an array of objects": b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
    }


def test_x1_pickles_that_name_anything_else_are_refused_and_do_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    cases = payloads(marker)
    assert len(cases) >= 10
    for name, blob in cases.items():
        with pytest.raises(ValueError, match=r"^batch: (not a batch of CIFAR|expected a dict)") as refused:
            pickles.load(blob, "batch")
        assert "\n" not in str(refused.value), name
        assert not marker.exists(), name


def test_x1_the_payloads_would_have_acted(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickle.loads(payloads(marker)["reduce"])
    assert marker.exists()


def test_arrays_of_today_and_of_python_2_are_read() -> None:
    value = {b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"n": [1, 2**40]}
    for blob in (python2(value), *(pickle.dumps(value, protocol=p) for p in range(2, 6))):
        if b"numpy._core.numeric" in blob:  # protocol 5 stores arrays in another way, which no CIFAR file has
            continue
        found = pickles.load(blob, "batch")
        assert np.array_equal(found[b"data"], value[b"data"])
        assert found[b"n"] == value[b"n"]


# ---- the download ----


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch, _offline: None) -> None:
    """Lets this process reach itself, and nothing else."""
    real = socket.socket.__mro__[1].connect  # type: ignore[attr-defined]

    def connect(self: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1", f"a test tried to reach {address}"
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setenv("no_proxy", "*")


@dataclasses.dataclass
class Server:
    """Serves one file. `breaks` are lengths after which an answer breaks off, one an answer; asked holds each Range."""

    blob: bytes
    breaks: list[int] = dataclasses.field(default_factory=list)
    ranges: bool = True
    kind: str = ""  # Content-Type
    length: bool = True  # whether it says how long the answer is
    shifted: int = 0  # by how much the place that a 206 names is wrong
    hold: threading.Event | None = None  # answers wait for it
    status: int = 200
    asked: list[str] = dataclasses.field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/file"


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, server: Server, *words: Any) -> None:
        self.what = server
        super().__init__(*words)

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        what, wanted = self.what, self.headers.get("Range", "")
        what.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and what.ranges else 0
        if what.status != 200 or start >= len(what.blob):
            self.send_error(what.status if what.status != 200 else 416)
            return
        if what.hold is not None:
            what.hold.wait(30)
        rest = what.blob[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + what.shifted}-{len(what.blob) - 1}/{len(what.blob)}")
        if what.kind:
            self.send_header("Content-Type", what.kind)
        if what.length:
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: what.breaks.pop(0)] if what.breaks else rest)
        self.close_connection = True


@pytest.fixture
def serve(loopback: None) -> Iterator[Callable[[Server], Server]]:
    running: list[http.server.ThreadingHTTPServer] = []

    def start(what: Server) -> Server:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, what))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        what.port = server.server_port
        return what

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


BLOB = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()
SHA = hashlib.sha256(BLOB).hexdigest()


def fetch(path: Path, *servers: Server) -> Path:
    return download.fetch([server.url for server in servers], path, sha256=SHA, size=len(BLOB), title="noise")


def test_a_file_is_downloaded_once_and_leaves_nothing_beside_it(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(BLOB))
    path = tmp_path / "new/folder/file"
    assert fetch(path, server) == path
    assert path.read_bytes() == BLOB
    assert fetch(path, server).read_bytes() == BLOB
    assert server.asked == [""]
    assert {p.name for p in path.parent.iterdir()} == {"file", "file.lock"}


@pytest.mark.parametrize("at", [0.0, 1e-6, 0.1, 0.25, 0.3334, 0.5, 0.6, 0.75, 0.9, 0.999999])
def test_d2_a_download_that_broke_off_goes_on_where_it_stopped(tmp_path: Path, serve: Callable[[Server], Server], at: float) -> None:
    stop = round(at * len(BLOB))
    server = serve(Server(BLOB, breaks=[stop, 0, 0, 0]))
    with pytest.raises(ValueError, match="broke off"):
        fetch(tmp_path / "file", server)
    assert (tmp_path / "file.part").stat().st_size == stop
    assert not (tmp_path / "file").exists()
    server.breaks.clear()
    server.asked.clear()
    assert fetch(tmp_path / "file", server).read_bytes() == BLOB
    assert server.asked == ([f"bytes={stop}-"] if stop else [""])


def test_one_call_goes_on_by_itself_while_it_comes_further(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(BLOB, breaks=[1_000_000, 1_200_000]))
    assert fetch(tmp_path / "file", server).read_bytes() == BLOB
    assert server.asked == ["", "bytes=1000000-", "bytes=2200000-"]


def test_a_server_without_ranges_begins_again(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    (tmp_path / "file.part").write_bytes(BLOB[:1_000_000])
    assert fetch(tmp_path / "file", serve(Server(BLOB, ranges=False))).read_bytes() == BLOB


def test_a_whole_part_needs_no_more_than_its_hash(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    (tmp_path / "file.part").write_bytes(BLOB)
    assert fetch(tmp_path / "file", serve(Server(BLOB))).read_bytes() == BLOB


def test_a_wrong_beginning_is_thrown_away_and_the_download_begins_again(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    (tmp_path / "file.part").write_bytes(b"<html>" + bytes(1000))
    server = serve(Server(BLOB))
    assert fetch(tmp_path / "file", server).read_bytes() == BLOB
    assert server.asked == ["bytes=1006-", ""]


def test_the_next_source_serves_where_one_fails(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    servers = [serve(Server(BLOB, status=503)), serve(Server(b"<html>sign in</html>")), serve(Server(BLOB[::-1])), serve(Server(BLOB))]
    assert fetch(tmp_path / "file", *servers).read_bytes() == BLOB
    assert [len(server.asked) for server in servers] == [1, 1, 1, 1]


def test_where_all_sources_fail_each_is_named_with_its_reason(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    servers = [serve(Server(BLOB, status=503)), serve(Server(b"<html>sign in</html>")), serve(Server(BLOB[::-1]))]
    with pytest.raises(ValueError, match="noise: could not be downloaded") as refused:
        fetch(tmp_path / "file", *servers)
    text = str(refused.value)
    assert "\n" not in text
    for server in servers:
        assert server.url in text
    for reason in ("HTTP 503", "a web page, not the file", "other bytes: SHA-256", "data_dir=<that file>"):
        assert reason in text
    assert not (tmp_path / "file.part").exists()


def test_d2_offline_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object, **more: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for read, source in ((cifar.read, cifar.CIFAR10), (cifar.read100, cifar.CIFAR100)):
        with pytest.raises(ValueError, match=f"{source.title}: could not be downloaded") as refused:
            read(None)
        text = str(refused.value)
        assert all(url in text for url in source.urls)
        assert f"fetch {source.archive} on a machine that can and give data_dir=<that file>" in text
        assert "\n" not in text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot be written"):
        fetch(tmp_path / "file" / "below", serve(Server(BLOB)))


def test_c3_a_full_disk_is_said_with_what_is_needed(
    tmp_path: Path, serve: Callable[[Server], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(ValueError, match=r"3 MB needed, 1 MB free"):
        fetch(tmp_path / "file", serve(Server(BLOB)))


def test_a_login_page_takes_nothing_from_a_long_part(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    (tmp_path / "file.part").write_bytes(BLOB[:2_000_000])
    for page in (Server(b"<html>sign in</html>", kind="text/html", ranges=False), Server(b"<html>sign in</html>", ranges=False)):
        with pytest.raises(ValueError, match="could not be downloaded"):
            fetch(tmp_path / "file", serve(page))
    (tmp_path / "file.part").write_bytes(BLOB[:2_000_000])
    with pytest.raises(ValueError, match="broke off"):  # a mirror without ranges that breaks off earlier than we were
        fetch(tmp_path / "file", serve(Server(BLOB, ranges=False, breaks=[100_000])))
    assert (tmp_path / "file.part").read_bytes() == BLOB[:2_000_000]
    good = serve(Server(BLOB))
    assert fetch(tmp_path / "file", good).read_bytes() == BLOB
    assert good.asked == ["bytes=2000000-"]


def test_an_answer_for_another_place_is_not_appended(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    (tmp_path / "file.part").write_bytes(BLOB[:1_000_000])
    server = serve(Server(BLOB, shifted=5))
    assert fetch(tmp_path / "file", server).read_bytes() == BLOB
    assert server.asked == ["bytes=1000000-", ""], "what came for another place is thrown away"


def test_an_endless_answer_is_cut_at_the_size_of_the_file(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    with pytest.raises(ValueError, match=r"more than the 3\.0 MB that the file has"):
        fetch(tmp_path / "file", serve(Server(BLOB * 3, length=False)))
    assert not (tmp_path / "file.part").exists()


def test_a_break_is_seen_where_the_server_names_no_length(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(BLOB, length=False, breaks=[1_000_000]))
    assert fetch(tmp_path / "file", server).read_bytes() == BLOB
    assert server.asked == ["", "bytes=1000000-"]


def test_a_server_that_has_nothing_is_a_failed_source(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    with pytest.raises(ValueError, match="HTTP 416"):
        fetch(tmp_path / "file", serve(Server(b"")))


def test_an_unreadable_file_is_named(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(ValueError, match=r"file cannot be written|Is a directory"):
        fetch(tmp_path / "file", serve(Server(BLOB)))


def test_a_broken_archive_in_data_is_named_and_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ten: tuple[Files, dict[str, np.ndarray]]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / cifar.CIFAR10.archive).write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"is not the published archive .*; it lies in data/, .* delete it to have it downloaded"):
        cifar.read(None)


def test_d2_two_processes_share_one_download(tmp_path: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(BLOB, hold=threading.Event()))
    call = f"fetch([{server.url!r}], Path('file'), sha256={SHA!r}, size={len(BLOB)}, title='noise')"
    code = f"from pathlib import Path; from twoviews.data.download import fetch; {call}"
    env = {**small.environment(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "no_proxy": "*"}  # its own network: this machine

    def start() -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True, **pipes)

    first = start()
    while not server.asked and first.poll() is None:
        time.sleep(0.05)
    second = start()
    assert second.stdout is not None
    said = second.stdout.readline()  # comes while the first one's answer is held
    assert server.hold is not None
    server.hold.set()
    out = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], out
    assert "another process is downloading file: waiting for it" in said
    assert server.asked == [""], "both downloaded"
    assert (tmp_path / "file").read_bytes() == BLOB
