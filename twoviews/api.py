"""The Python interface: commands as functions, which change nothing in the program that calls them.

They print what the commands print. Signals are handled in the main thread only, torch's settings are the caller's again at
the end, and torch's and numpy's random state is not touched.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twoviews import config, device, output
from twoviews.commands.evaluate import run_evaluate
from twoviews.commands.pretrain import run_pretrain
from twoviews.config import Config
from twoviews.data import own
from twoviews.data.arrays import Arrays
from twoviews.inputs import OWN_DATA
from twoviews.train import OnStep

READING = ("dataset", "data_dir", "image_size", "layout", "classes", "background", "value_range", "on_bad")  # keys for data in files
_alone = threading.RLock()  # torch's settings belong to the process, so calls of several threads run one after another


@contextlib.contextmanager
def _guest() -> Iterator[None]:
    with _alone, output.escaping(), device.as_guest():
        yield


def pretrain(
    recipe: str | None = None, *, data: Any = None, name: str = "own data", on_step: OnStep | None = None, **overrides: Any
) -> Path:
    """Train an encoder without labels and evaluate it, as `twoviews pretrain recipe=<recipe> key=value ...` does.

        run = pretrain("cifar_thin", data=(images, labels), epochs=5, batch_size=64)

    Args:
        recipe: a file in `config/recipes`, without its ending; None: that of the run that `resume=` names, or cifar_thin.
        data: images to train on, in place of a data set in files: `(images, labels)`, with uint8 images of shape (N, C, H, W),
            (N, H, W, C) or (N, H, W) as an array or tensor, C 1 or 3, and N integers or texts as labels, or None; a data set such
            as torchvision's, whose images are read once, in order; or a pair of these, train and test. Without test images a
            tenth is held out. A run is resumed and evaluated with the same data.
        name: of `data`, in tables.
        on_step: called after each step with the number of steps done and the row of `metrics.jsonl` that was written last ({}
            before the first). If it returns True, the run is saved and ends; `resume=` continues it.
        overrides: keys and values, such as `epochs=5, runs_dir=Path("runs")`: None, bools, numbers, texts, paths, or tuples,
            lists, ranges and arrays of them.

    Returns:
        The run folder: `summary.json`, `report.html`, `backbone.safetensors` and the rest.

    Raises:
        ValueError: if a key, a value or the data are refused; nothing was written.
        FloatingPointError: if a loss is not finite. The last checkpoint is kept.
        MemoryError: if memory runs out.
        runs.StepFailed: if a step after training failed; its attribute `run` is the folder, which has the weights.
        InterruptedError: if a signal stopped the run in the main thread; `resume=` continues from its checkpoint.
        KeyboardInterrupt: if Ctrl-C was pressed before or after training, or twice.
    """
    given = overrides if recipe is None else {"recipe": recipe, **overrides}
    with _guest():
        cfg = _loaded("pretrain", given)
        cfg, arrays = _with_data(cfg, data, name)
        path, code = run_pretrain(cfg, data=arrays, on_step=on_step)
    if code:
        raise InterruptedError(
            f"stopped by signal {code - 128}: to continue: pretrain(resume={str(path)!r}{', data=...' * (data is not None)})"
        )
    return path


def evaluate(run: str | Path = "latest", *, data: Any = None, name: str = "own data", **overrides: Any) -> list[dict[str, Any]]:
    """Evaluate a finished run again, as `twoviews evaluate run=<run> key=value ...` does; its summary gets the rows, too.

        rows = evaluate(run, probes="knn,linear_precomp")

    Args:
        run: a run folder, its name in `runs_dir`, or `latest`.
        data, name: of a run that was trained on `data`: the same as there.
        overrides: keys and values, as in `pretrain`.

    Returns:
        One row for each probe, and for raw pixels, the random initialisation and the trained backbone: `accuracy` in [0, 1], `of`,
        `features`, `split` and the settings of the probe.

    Raises:
        ValueError: if a key, a value or the data are refused, or there is no such run.
        KeyboardInterrupt: if Ctrl-C was pressed; the rows of complete probes are kept.
    """
    with _guest():
        cfg = _loaded("evaluate", {"run": run, **overrides})
        return run_evaluate(*_with_data(cfg, data, name))


def _loaded(verb: str, given: dict[str, Any]) -> config.Config:
    """Return the configuration of a call."""
    cfg = config.load(verb, [config.word(key, value) for key, value in given.items()])
    if cfg.get("threads") == "polite":
        raise ValueError("threads='polite': too late here, torch is loaded: set OMP_WAIT_POLICY=passive before Python starts")
    return cfg


def _with_data(cfg: Config, data: Any, name: str) -> tuple[Config, Arrays | None]:
    """Return the configuration for data in memory, and these data."""
    if data is None:
        return cfg, None
    if wrong := [key for key in READING if key in cfg.given]:
        raise ValueError(f"{wrong[0]}={cfg[wrong[0]]}: data= takes the place of a data set in files: leave one of them out")
    given, cfg = cfg.given, Config({**cfg, "dataset": OWN_DATA if cfg.get("recipe") else None, "data_dir": None})
    cfg.given = given
    return cfg, own.read(data, name)
