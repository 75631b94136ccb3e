"""Find run folders: by path, by name, or the newest one."""

import os
import sys
from pathlib import Path
from typing import Any

from twoviews.runs.folder import BACKBONE, CONFIG, SUMMARY, read_config, read_json


def find(run: str, runs_dir: Path, *, key: str = "run", also: str = "", **like: Any) -> Path:
    """Return the folder of a run.

    Args:
        run: a folder, a name under `runs_dir`, the end of a name after a `-` (a `run_id`) that one run alone has, or `latest`: the
            newest finished run there.
        key: that the user typed, for errors.
        also: what else the key takes, for errors.
        like: keys and values that the run's configuration must have.

    Raises:
        ValueError: if there is none, with the runs that exist.
    """
    if run != "latest":
        ending = [path for path in folders(runs_dir) if path.name.endswith(f"-{run}")] if "/" not in run else []
        for path in (Path(run), runs_dir / run, *(ending if len(ending) == 1 else [])):
            if (path / CONFIG).is_file():
                config = read_config(path)
                other = [f"{name}={config.get(name)}, not {value}" for name, value in like.items() if config.get(name) != value]
                if other:
                    raise ValueError(f"{key}={run}: has {'; '.join(other)}: leave these keys out, or choose another run")
                return path
        raise ValueError(f"{key}={run}: no such run folder{also}{_listing(runs_dir)}")
    finished = [path for path in folders(runs_dir) if (path / SUMMARY).is_file() and (path / BACKBONE).is_file()]
    finished.sort(key=lambda path: (path / BACKBONE).stat().st_mtime_ns)  # not the summary's time: an evaluation rewrites it
    matching = [path for path in finished if like.items() <= read_config(path).items()]
    if matching:
        return matching[-1]
    if not finished:
        raise ValueError(f"{key}=latest: no finished run in {runs_dir}{_listing(runs_dir)}")
    existing = []
    for path in finished[-5:]:
        config = read_config(path)
        existing.append(f"{path.name} ({', '.join(f'{key}={config.get(key)}' for key in ('method', *like))})")
    existing += [f"and {len(finished) - 5} older ones"] * (len(finished) > 5)
    wanted = ", ".join(f"{key}={value}" for key, value in like.items())
    raise ValueError(f"run=latest: no finished run in {runs_dir} with {wanted}; existing runs: {'; '.join(existing)}: choose one with run=")


def several(run: str, runs_dir: Path) -> list[str]:
    """Return the runs that a value with commas names: one, where a folder has that name."""
    return [run] if Path(run).exists() or (runs_dir / run).exists() else [name.strip() for name in run.split(",")]


def newest_unfinished(runs_dir: Path) -> Path:
    """Return the folder of the newest run that was not evaluated to its end, which `resume=latest` continues.

    Raises:
        ValueError: if there is none.
    """
    unfinished = [path for path in folders(runs_dir) if (read_json(path, SUMMARY) or {"unfinished": True}).get("unfinished")]
    if not unfinished:
        raise ValueError(f"resume=latest: no unfinished run in {runs_dir}{_listing(runs_dir)}")
    return unfinished[-1]


def epoch_file(path: Path, epoch: int) -> Path:
    """Return the weights that a run saved after an epoch (`log_interval`).

    Raises:
        ValueError: if there are none, with those that exist.
    """
    wanted = path / f"epoch-{epoch}.safetensors"
    if not wanted.is_file():
        saved = sorted(int(file.stem.removeprefix("epoch-")) for file in path.glob("epoch-*.safetensors"))
        existing = f"saved epochs: {', '.join(map(str, saved))}" if saved else "it saved only the last one: log_interval= sets how often"
        raise ValueError(f"load_epoch={epoch}: {path} has no weights of this epoch: {existing}")
    return wanted


def folders(runs_dir: Path) -> list[Path]:
    """Return every run folder in `runs_dir`, oldest first; one that may not be read is left out with a line.

    Raises:
        ValueError: if `runs_dir` itself may not be read.
    """
    found = []
    try:
        names = sorted(os.listdir(runs_dir))  # noqa: PTH208 - `glob` would stop at the first folder of another user
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ValueError(f"runs_dir={runs_dir}: cannot be read ({error.strerror})") from None
    for path in (runs_dir / name for name in names if not name.startswith(".")):
        try:
            found.append(((path / CONFIG).stat().st_mtime_ns, path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            print(f"left out: {path}: cannot be read ({error.strerror})", file=sys.stderr)
    return [path for _, path in sorted(found)]


def _listing(runs_dir: Path) -> str:
    names = [path.name for path in folders(runs_dir)][-5:]
    return f"; {runs_dir} holds {', '.join(names)}" if names else f"; {runs_dir} holds no run: twoviews pretrain creates one"
