"""The run folder: made atomically, locked while in use, never overwritten."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import secrets
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from twoviews import checkpoint, lock

CONFIG, MANIFEST, METRICS, SUMMARY = "config.yaml", "manifest.json", "metrics.jsonl", "summary.json"
BACKBONE, REPORT, REPLAY, TRACE = "backbone.safetensors", "report.html", "replay.json", "trace.json"

# Keys that change no weight: where a run lies, how it was cut short, when it is saved, how it is read out.
WEIGHTLESS = (
    *("runs_dir", "data_dir", "debug", "profile", "resume", "run_id", "max_steps", "checkpoint_every", "log_interval"),
    *("probes", "probe_every", "solver", "protocol", "table"),
    *("probe_epochs", "probe_learning_rate", "probe_momentum", "probe_weight_decay"),
)
SEAL = "# sha256 of what follows: "  # the first line of a configuration, so that a file that was cut short still has it
DATA = "# data: "  # and its second: what pixels and labels the run is of
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
        self._lock = lock.take(self.path)
        checkpoint.clean(self.path)
        self.identity = identity(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.close()

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to the metrics, one JSON object a line, each with the first eight digits of its seal.

        Raises:
            OSError: with the megabytes needed and free, or that the folder is gone.
        """
        lines = self._lines(rows)
        try:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            raise checkpoint.named(error, self.path / METRICS, len(lines)) from None

    def truncate_metrics(self, step: int) -> None:
        """Drop every row of `step` and later, and a torn last line: what a resumed run will write again. Rows that are damaged or lost are
        said and left out: they are no reason to stop a run whose checkpoint is whole."""
        bad: list[str] = []
        rows = [row for row in metrics(self.path, bad) if row["step"] < step]
        if bad or len(rows) < step:
            print(f"{bad[0] if bad else self.path / METRICS}: of {step} steps {len(rows)} are logged; going on without the others")
        checkpoint.write_atomic(self.path / METRICS, self._lines(rows).encode())

    def _lines(self, rows: list[dict[str, Any]]) -> str:
        return "".join(json.dumps({**row, "sha256": checkpoint.seal(row, self.identity)[:8]}) + "\n" for row in rows)

    def write(self, name: str, content: dict[str, Any] | str | bytes) -> None:
        """Write one file of the run atomically; a dict becomes JSON with a seal."""
        if isinstance(content, dict):
            content = {"sha256": checkpoint.seal(content, self.identity), **content}
            content = NUMBERS.sub(lambda found: " ".join(found[0].split()), json.dumps(content, indent=1)) + "\n"
        checkpoint.write_atomic(self.path / name, content if isinstance(content, bytes) else content.encode())


def create(runs_dir: Path, name: str, config_yaml: str, run_id: str | None = None, data_digest: str = "") -> Path:
    """A new folder `<runs_dir>/<name>-<time>-<hex>`, or `<name>-<run_id>`, with its config inside, and in that what data it is of.

    Raises:
        ValueError: if the place cannot be written, or the folder of that `run_id` is there.
    """
    content = f"{DATA}{data_digest}\n{config_yaml}" if data_digest else config_yaml
    beside = None
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        beside = runs_dir / f".new-{secrets.token_hex(8)}"
        beside.mkdir()
        checkpoint.write_atomic(beside / CONFIG, (SEAL + hashlib.sha256(content.encode()).hexdigest() + "\n" + content).encode())
        while True:
            own = run_id or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
            path = runs_dir / f"{name}-{own}"
            try:
                beside.rename(path)  # atomic: of two processes at one instant one gets the name, and no folder lacks its config
                return path
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                if run_id:
                    raise ValueError(f"run_id={run_id}: {path} is there: another process began it at this instant") from None
    except OSError as error:
        raise ValueError(f"runs_dir={runs_dir}: cannot be written ({error.strerror}): choose another with runs_dir=") from None
    finally:
        if beside is not None and beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)


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


def identity(path: Path) -> str:
    """What tells a run's files from another run's: a checksum of the data and of the keys that decide its weights; empty without seals.

    Raises:
        ValueError: as `config`.
    """
    if not (path / CONFIG).is_file() or not (path / CONFIG).read_bytes().startswith(SEAL.encode()):
        return ""
    decides = {key: value for key, value in config(path).items() if key not in WEIGHTLESS}
    second = (path / CONFIG).read_text(encoding="utf-8").split("\n", 2)[1]
    if second.startswith(DATA):
        decides["data"] = second.removeprefix(DATA)
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()


def config(path: Path) -> dict[str, Any]:
    """The resolved configuration of a run.

    Raises:
        ValueError: if its checksum does not hold, or it cannot be parsed.
    """
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
        first, _, rest = text.partition("\n")
        if not first.startswith(SEAL) and (path / MANIFEST).is_file() and b'"sha256"' in (path / MANIFEST).read_bytes():
            raise ValueError(f"{path / CONFIG}: damaged or changed: it has lost its checksum")
        if first.startswith(SEAL) and first.removeprefix(SEAL) != hashlib.sha256(rest.encode()).hexdigest():
            raise ValueError(f"{path / CONFIG}: damaged or changed: its checksum does not hold")
        found = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise ValueError(f"{path / CONFIG}: damaged: not text") from None
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
    return sorted((p.parent for p in runs_dir.glob(f"[!.]*/{CONFIG}")), key=lambda p: (p / CONFIG).stat().st_mtime_ns)


def _listing(runs_dir: Path) -> str:
    names = [path.name for path in folders(runs_dir)][-5:]
    return f"; {runs_dir} holds {', '.join(names)}" if names else f"; {runs_dir} holds no run: twoviews pretrain makes one"


def metrics(path: Path, bad: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a run's metrics; a torn last line, left by a kill, is skipped.

    Args:
        path: the run folder.
        bad: where what is wrong with other lines is put; None: the first of them raises.

    Raises:
        ValueError: naming the line, if another one is no row of this run.
    """
    rows = []
    try:
        blob = (path / METRICS).read_bytes()
    except FileNotFoundError:
        return []
    run = identity(path)
    lines = blob.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if number == len(lines):  # behind the last line break: nothing, or a torn line
            break
        try:
            row = checkpoint.opened(json.loads(line), run)
            row["step"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = error if "checksum" in str(error) else "not a row of metrics"
            if bad is None:
                raise ValueError(f"{path / METRICS}, line {number}: {why}") from None
            bad.append(f"{path / METRICS}, line {number}: {why}")
            continue
        rows.append(row)
    return rows


def read_json(path: Path, name: str) -> dict[str, Any]:
    """One JSON file of a run, or {} if it is not there.

    Raises:
        ValueError: if it is there and cannot be parsed, or its checksum does not hold.
    """
    try:
        found = json.loads((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / name}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path / name}: not a JSON object")
    try:
        return checkpoint.opened(found, identity(path))
    except ValueError as error:
        raise ValueError(f"{path / name}: {error}") from None


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
