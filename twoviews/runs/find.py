"""Find run folders: by path, by name, or the newest one."""

from pathlib import Path
from typing import Any

from twoviews.runs.folder import BACKBONE, CONFIG, SUMMARY, read_config


def find(run: str, runs_dir: Path, **like: Any) -> Path:
    """Return the folder of a run.

    Args:
        run: a folder, a name under `runs_dir`, or `latest`: the newest finished run there.
        like: keys and values that the run's configuration must have.

    Raises:
        ValueError: if there is none, with the runs that exist.
    """
    if run != "latest":
        for path in (Path(run), runs_dir / run):
            if (path / CONFIG).is_file():
                config = read_config(path)
                other = [f"{key}={config.get(key)}, not {value}" for key, value in like.items() if config.get(key) != value]
                if other:
                    raise ValueError(f"run={run}: has {'; '.join(other)}: leave these keys out, or choose another run")
                return path
        raise ValueError(f"run={run}: no such run folder{_listing(runs_dir)}")
    finished = [path for path in folders(runs_dir) if (path / SUMMARY).is_file() and (path / BACKBONE).is_file()]
    finished.sort(key=lambda path: (path / BACKBONE).stat().st_mtime_ns)  # not the summary's time: an evaluation rewrites it
    matching = [path for path in finished if like.items() <= read_config(path).items()]
    if matching:
        return matching[-1]
    if not finished:
        raise ValueError(f"run=latest: no finished run in {runs_dir}{_listing(runs_dir)}")
    existing = []
    for path in finished[-5:]:
        config = read_config(path)
        existing.append(f"{path.name} ({', '.join(f'{key}={config.get(key)}' for key in ('method', *like))})")
    existing += [f"and {len(finished) - 5} older ones"] * (len(finished) > 5)
    wanted = ", ".join(f"{key}={value}" for key, value in like.items())
    raise ValueError(f"run=latest: no finished run in {runs_dir} with {wanted}; existing runs: {'; '.join(existing)}: choose one with run=")


def newest_unfinished(runs_dir: Path) -> Path:
    """Return the folder of the newest run that was not evaluated to its end, which `resume=latest` continues.

    Raises:
        ValueError: if there is none.
    """
    unfinished = [path for path in folders(runs_dir) if not (path / SUMMARY).is_file()]
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
    """Return every run folder in `runs_dir`, oldest first."""
    return sorted((p.parent for p in runs_dir.glob(f"[!.]*/{CONFIG}")), key=lambda p: (p / CONFIG).stat().st_mtime_ns)


def _listing(runs_dir: Path) -> str:
    names = [path.name for path in folders(runs_dir)][-5:]
    return f"; {runs_dir} holds {', '.join(names)}" if names else f"; {runs_dir} holds no run: twoviews pretrain creates one"
