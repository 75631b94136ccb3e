"""The trackers of one run: which are asked for, what they receive, and what happens when one fails."""

import contextlib
import importlib
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from twoviews.runs.folder import RunFolder, read_metrics
from twoviews.trackers.kinds import KINDS, wandb_mode


def check(track: str | None) -> list[str]:
    """Return the trackers of the key `track`.

    Args:
        track: names with commas, or None.

    Raises:
        ValueError: if the package of one is not installed, or nobody is logged in where it needs that.
    """
    names = list(dict.fromkeys(name.strip() for name in track.split(","))) if track else []
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, such as the one that wandb writes, is no package
            raise ValueError(f"track={track}: {name} is not installed: pip install 'twoviews[{name}]', or leave it out with track=null")
    if "wandb" in names and wandb_mode() not in ("offline", "disabled", "dryrun"):
        wandb: Any = importlib.import_module("wandb")
        if not wandb.login(prompt=False):
            raise ValueError(f"track={track}: WANDB_MODE={wandb_mode()}, but nobody is logged in: type wandb login")
    return names


class Followers:
    """The trackers of one run. One that fails is named once and left out.

    Args:
        names: from `check`.
        folder: of the run.
        config: of the run.
    """

    def __init__(self, names: Iterable[str], folder: RunFolder, config: Mapping[str, Any]) -> None:
        self.folder, self.config = folder, config
        self.names = list(names) if folder.writes else []
        self.open: dict[str, Any] = {}

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Send rows that were just written; to a tracker that is not open yet, also those before them that it lacks."""
        for name in list(self.names):
            with _Leaving(self, name):
                found = rows if name in self.open else read_metrics(self.folder.path, [])
                if name not in self.open:
                    self.open[name] = KINDS[name](self.folder.path, self.config)
                tracker = self.open[name]
                if lacking := [row for row in found if row["step"] > tracker.last]:
                    tracker.log(lacking)
                    tracker.last = lacking[-1]["step"]

    def finish(self, results: Mapping[str, float]) -> None:
        """Send the final accuracies, also of a run whose training had ended before."""
        self.log([])
        for name, tracker in list(self.open.items()):
            with _Leaving(self, name):
                tracker.finish(results)

    def close(self) -> None:
        """Close all trackers, also after a run that was stopped."""
        for name, tracker in list(self.open.items()):
            with _Leaving(self, name):
                tracker.close()


class _Leaving:
    """What a tracker does: an error leaves it out and says so."""

    def __init__(self, followers: Followers, name: str) -> None:
        self.followers, self.name = followers, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        self.followers.names = [name for name in self.followers.names if name != self.name]
        if (tracker := self.followers.open.pop(self.name, None)) is not None:
            with contextlib.suppress(Exception):
                tracker.close()
        problem = " ".join(str(error).split())[:160] or type(error).__name__
        print(f"warning: track={self.name}: left out from now on ({problem}); metrics.jsonl has everything")
        return True
