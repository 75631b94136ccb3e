"""The run folder: made atomically, locked while in use, never overwritten."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import secrets
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from twoviews import checkpoint

CONFIG, MANIFEST, METRICS, SUMMARY, BACKBONE, REPORT, REPLAY = (
    "config.yaml",
    "manifest.json",
    "metrics.jsonl",
    "summary.json",
    "backbone.safetensors",
    "report.html",
    "replay.json",
)


NUMBERS = re.compile(r"\[\s[-+.\deE\s,nul]*\]")  # a list of nothing but numbers: one line of a JSON file, not one line each


class RunFolder:
    """A folder that one process at a time writes: `with RunFolder(path) as run:` holds its lock.

    Raises:
        ValueError: on entering, if the folder is missing or another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> RunFolder:
        if not (self.path / CONFIG).is_file():
            raise ValueError(f"{self.path}: not a run folder (it has no {CONFIG})")
        self._lock = open(self.path / ".lock", "a+", encoding="utf-8")  # until __exit__; with the process the kernel frees it
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip()
            self._lock.close()
            raise ValueError(f"{self.path}: in use by {holder or 'another process'}: wait for it, or start a run of your own") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {platform.node()}")
        self._lock.flush()
        checkpoint.clean(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.close()

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to the metrics, one JSON object a line."""
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def truncate_metrics(self, step: int) -> None:
        """Drop every row of `step` and later, and a torn last line: what a resumed run will write again."""
        rows = [row for row in metrics(self.path) if row["step"] < step]
        checkpoint.write_atomic(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def write(self, name: str, content: dict[str, Any] | str | bytes) -> None:
        """Write one file of the run atomically; a dict becomes JSON."""
        if isinstance(content, dict):
            content = NUMBERS.sub(lambda found: " ".join(found[0].split()), json.dumps(content, indent=1)) + "\n"
        checkpoint.write_atomic(self.path / name, content if isinstance(content, bytes) else content.encode())


def create(runs_dir: Path, name: str, config_yaml: str) -> Path:
    """A new folder `<runs_dir>/<name>-<time>-<hex>` with its config inside.

    Raises:
        ValueError: if the place cannot be written.
    """
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        while True:
            path = runs_dir / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
            try:
                path.mkdir()  # atomic: of two processes at one instant one gets the name
                break
            except FileExistsError:
                continue
        checkpoint.write_atomic(path / CONFIG, config_yaml.encode())
    except OSError as error:
        raise ValueError(f"runs_dir={runs_dir}: cannot be written ({error.strerror}): choose another with runs_dir=") from None
    return path


def find(run: str, runs_dir: Path, **like: Any) -> Path:
    """The folder of a run.

    Args:
        run: a folder, a name under `runs_dir`, or `latest`: the newest run there that has a summary.
        like: keys that its configuration must have: what `latest` looks for.

    Raises:
        ValueError: if there is none, with what there is.
    """
    if run != "latest":
        for path in (Path(run), runs_dir / run):
            if (path / CONFIG).is_file():
                other = [f"{key}={config(path).get(key)}, not {value}" for key, value in like.items() if config(path).get(key) != value]
                if other:
                    raise ValueError(f"run={run}: has {'; '.join(other)}: name a run without saying what it is like")
                return path
        raise ValueError(f"run={run}: no run folder there{_listing(runs_dir)}")
    done = [path for path in folders(runs_dir) if (path / SUMMARY).is_file() and (path / BACKBONE).is_file()]
    done.sort(key=lambda path: (path / BACKBONE).stat().st_mtime_ns)  # not the summary's time: reading out writes it again
    fitting = [path for path in done if like.items() <= config(path).items()]
    if fitting:
        return fitting[-1]
    if not done:
        raise ValueError(f"run=latest: no finished run in {runs_dir}{_listing(runs_dir)}")
    there = [f"{path.name} ({', '.join(f'{key}={config(path).get(key)}' for key in ('method', *like))})" for path in done[-5:]]
    there += [f"and {len(done) - 5} older ones"] * (len(done) > 5)
    raise ValueError(
        f"run=latest: no finished run in {runs_dir} with {', '.join(f'{key}={value}' for key, value in like.items())}; "
        f"there is {'; '.join(there)}: choose one with run="
    )


def config(path: Path) -> dict[str, Any]:
    """The resolved configuration of a run.

    Raises:
        ValueError: if it cannot be parsed.
    """
    try:
        found = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path / CONFIG}: not YAML ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path / CONFIG}: holds no keys: not a configuration")
    return found


def epoch_file(path: Path, epoch: int) -> Path:
    """The weights that a run kept at the end of an epoch (`log_interval`).

    Raises:
        ValueError: if it kept none then, with those that there are.
    """
    found = path / f"epoch-{epoch}.safetensors"
    if not found.is_file():
        kept = sorted(int(file.stem.removeprefix("epoch-")) for file in path.glob("epoch-*.safetensors"))
        there = f"it kept {', '.join(map(str, kept))}" if kept else "it kept none but the last: log_interval= sets how often"
        raise ValueError(f"load_epoch={epoch}: {path} has no such epoch: {there}")
    return found


def folders(runs_dir: Path) -> list[Path]:
    """Every run folder in `runs_dir`, oldest first."""
    return sorted((p.parent for p in runs_dir.glob(f"*/{CONFIG}")), key=lambda p: (p / CONFIG).stat().st_mtime_ns)


def _listing(runs_dir: Path) -> str:
    names = [path.name for path in folders(runs_dir)][-5:]
    return f"; {runs_dir} holds {', '.join(names)}" if names else f"; {runs_dir} holds no run: twoviews pretrain makes one"


def metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics; a torn last line, left by a kill, is skipped.

    Raises:
        ValueError: naming the line, if another one is not JSON.
    """
    rows = []
    try:
        lines = (path / METRICS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(f"{path / METRICS}, line {number}: not JSON") from None
    return rows


def read_json(path: Path, name: str) -> dict[str, Any]:
    """One JSON file of a run, or {} if it is not there.

    Raises:
        ValueError: if it is there and cannot be parsed.
    """
    try:
        return json.loads((path / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path / name}: not JSON ({error})") from None


def check_data(path: Path, digest: str) -> None:
    """Refuse to go on with, or to read out, a run on other data than it was trained on.

    Args:
        path: the run.
        digest: of the data at hand.

    Raises:
        ValueError: if the run's manifest has another one.
    """
    then = read_json(path, MANIFEST).get("data_digest")
    if then != digest:
        raise ValueError(f"{path}: the data differ from the run's (digest {digest[:12]}, then {str(then)[:12]}): data_dir= names a place")


def manifest(**more: Any) -> dict[str, Any]:
    """Where and how a run ran: command, git commit, versions, machine, and whatever the caller adds."""
    return {
        "command": _command(sys.argv, sys.orig_argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("twoviews", "torch", "torchvision", "numpy")},
        "system": platform.platform(),
        **more,
    }


def _command(argv: list[str], typed: list[str]) -> str:
    """The command without the interpreter and without the folders of the program: `twoviews pretrain recipe=demo`.

    Args:
        argv: `sys.argv`; its first word is the program, or the package's `__main__.py` under `python -m`.
        typed: `sys.orig_argv`, whose tail is what was typed behind the program; a sweep changes `argv`, never this.
    """
    program = Path(argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name.split()[0] if program.name else "python"
    here = [i for i, word in enumerate(typed) if i and Path(word).name in (name, program.name, f"-m{name}")]
    command = ["python", name] if name.endswith(".py") else [name]
    return shlex.join([*command, *typed[here[0] + 1 :]] if here else command)


def _commit() -> str | None:
    """The git commit of the package's checkout, `+` behind it if files differ; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent.resolve():  # an environment inside somebody's repository
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
