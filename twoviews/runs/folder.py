"""The run folder: created atomically, locked while in use, never overwritten."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from twoviews.config.schema import keys
from twoviews.runs import metrics
from twoviews.runs.files import checksum, disk_error, remove_temporary, sync, verified, write_atomic
from twoviews.runs.lock import lock
from twoviews.runs.metrics import METRICS

CONFIG, MANIFEST, SUMMARY = "config.yaml", "manifest.json", "summary.json"
BACKBONE, REPLAY, TRACE = "backbone.safetensors", "replay.json", "trace.json"
REPORT, NEIGHBOURS = "report.html", "neighbours.png"
LAST, PREVIOUS, DAMAGED = "checkpoint", "checkpoint.previous", "checkpoint.damaged"

CHECKSUM = "# sha256 of what follows: "  # the first line of a configuration, so that a truncated file still has it
DATA = "# data: "  # its second line: the digest of pixels and labels
NUMBERS = re.compile(r'"(?:[^"\\]|\\.)*"|\[\s[-+.\deE\s,nul]*\]')  # text, and a list of numbers, which is printed on one line


class StepFailed(RuntimeError):
    """A step after training failed: the weights and all accuracies so far are in the folder `run`.

    Args:
        message: what failed, what is kept, and the command that repeats it.
        run: the run folder.
    """

    def __init__(self, message: str, run: Path) -> None:
        super().__init__(message)
        self.run = run


class RunFolder:
    """A folder that one process at a time writes: `with RunFolder(path) as run:` holds its lock.

    Args:
        path: of the folder.
        writes: False in the processes of a run that leave this to the first one: here nothing is read, locked or written.

    Raises:
        ValueError: on entering, if the folder is missing or another process holds it.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes, self.identity = path, writes, ""
        self.listeners: list[Callable[[list[dict[str, Any]]], None]] = []  # called with the rows that were logged

    def __enter__(self) -> RunFolder:
        if not self.writes:
            return self
        if not (self.path / CONFIG).is_file():
            raise ValueError(f"{self.path}: not a run folder (it has no {CONFIG})")
        self._lock = lock(self.path)
        remove_temporary(self.path)
        self.identity = identity(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.writes:
            self._lock.release()

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to the metrics.

        Raises:
            OSError: with the megabytes needed and free, or that the folder no longer exists.
        """
        if not self.writes:
            return
        lines = metrics.lines(rows, self.identity)
        try:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            raise disk_error(error, self.path / METRICS, len(lines)) from None
        for listener in self.listeners:
            listener(rows)

    def flush_metrics(self) -> None:
        """Flush the metrics to disk, so that no checkpoint is newer than they are after a power failure.

        Raises:
            OSError: with the megabytes free if the disk is full, or that the folder no longer exists.
        """
        try:
            sync(self.path / METRICS)
        except OSError as error:
            raise disk_error(error, self.path / METRICS, 0) from None

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows of `step` and later, and an incomplete last line: a resumed run writes them again.

        Damaged and missing rows are reported and left out. They are no reason to stop a run whose checkpoint is complete.
        """
        if not self.writes:
            return
        bad: list[str] = []
        rows = [row for row in read_metrics(self.path, bad) if row["step"] < step]
        if bad or len(rows) < step:
            print(f"{bad[0] if bad else self.path / METRICS}: {len(rows)} of {step} steps are logged; continuing without the others")
        write_atomic(self.path / METRICS, metrics.lines(rows, self.identity).encode())

    def write(self, name: str, content: dict[str, Any] | str | bytes) -> None:
        """Write one file of the run atomically; a dict becomes JSON with a checksum."""
        if not self.writes:
            return
        if isinstance(content, dict):
            content = {"sha256": checksum(content, self.identity), **content}
            content = NUMBERS.sub(_on_one_line, json.dumps(content, indent=1)) + "\n"
        write_atomic(self.path / name, content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))


def _on_one_line(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith('"') else " ".join(match[0].split())


def create(runs_dir: Path, name: str, config_yaml: str, run_id: str | None = None, data_digest: str = "") -> Path:
    """Create the folder `<runs_dir>/<name>-<time>-<hex>`, or `<name>-<run_id>`, with its configuration, and return it.

    Raises:
        ValueError: if `runs_dir` cannot be written, or the folder of that `run_id` exists.
    """
    content = f"{DATA}{data_digest}\n{config_yaml}" if data_digest else config_yaml
    temporary = None
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        temporary = runs_dir / f".new-{secrets.token_hex(8)}"
        temporary.mkdir()
        write_atomic(temporary / CONFIG, (CHECKSUM + hashlib.sha256(content.encode()).hexdigest() + "\n" + content).encode())
        while True:
            ending = run_id or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
            path = runs_dir / f"{name}-{ending}"
            try:
                temporary.rename(path)  # atomic: of two processes only one gets the name, and every folder has its configuration
                return path
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                if run_id:
                    raise ValueError(f"run_id={run_id}: {path} exists: another process created it at the same time") from None
    except OSError as error:
        raise ValueError(f"runs_dir={runs_dir}: cannot be written ({error.strerror}): choose another with runs_dir=") from None
    finally:
        if temporary is not None and temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)


def identity(path: Path) -> str:
    """Return a checksum of the data and of the science keys: files of another run do not have it.

    It is empty for a folder whose configuration has no checksum.

    Raises:
        ValueError: as `read_config`.
    """
    if not (path / CONFIG).is_file() or not (path / CONFIG).read_bytes().startswith(CHECKSUM.encode()):
        return ""
    science = keys("science")
    decisive = {key: value for key, value in read_config(path).items() if key in science}
    second = (path / CONFIG).read_text(encoding="utf-8").split("\n", 2)[1]
    if second.startswith(DATA):
        decisive["data"] = second.removeprefix(DATA)
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def read_config(path: Path) -> dict[str, Any]:
    """Return the resolved configuration of a run.

    Raises:
        ValueError: if its checksum is wrong, or it cannot be parsed.
    """
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
        first, _, rest = text.partition("\n")
        if not first.startswith(CHECKSUM) and (path / MANIFEST).is_file() and b'"sha256"' in (path / MANIFEST).read_bytes():
            raise ValueError(f"{path / CONFIG}: damaged or changed: its checksum is missing")
        if first.startswith(CHECKSUM) and first.removeprefix(CHECKSUM) != hashlib.sha256(rest.encode()).hexdigest():
            raise ValueError(f"{path / CONFIG}: damaged or changed: its checksum is wrong")
        config = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise ValueError(f"{path / CONFIG}: damaged: not text") from None
    except PermissionError as error:
        raise ValueError(f"{path / CONFIG}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path / CONFIG}: not YAML ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path / CONFIG}: holds no keys: not a configuration")
    return config


def read_metrics(path: Path, bad: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics, as `metrics.read`.

    Args:
        path: the run folder.
        bad: receives what is wrong with single lines; None: the first of them raises.

    Raises:
        ValueError: with the line's number, if a line is not a row of this run.
    """
    return metrics.read(path / METRICS, identity(path) if (path / METRICS).is_file() else "", bad)


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Return the content of one JSON file of a run, or {} if the file does not exist.

    Raises:
        ValueError: if it exists and cannot be parsed, or its checksum is wrong.
    """
    try:
        content = json.loads((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / name}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path / name}: not a JSON object")
    try:
        return verified(content, identity(path))
    except ValueError as error:
        raise ValueError(f"{path / name}: {error}") from None


def check_data(path: Path, digest: str) -> None:
    """Refuse to resume or evaluate a run on other data than it was trained on.

    Args:
        path: the run.
        digest: of the data that were read now.

    Raises:
        ValueError: if the run's manifest has another digest.
    """
    stored = read_json(path, MANIFEST).get("data_digest")
    if stored != digest:
        raise ValueError(
            f"{path}: the data differ from the run's (digest {digest[:12]}, in the run {str(stored)[:12]}): "
            "give the run's data with data_dir=, or in Python with data="
        )
