"""Train every method with the same network, data and number of views; write results/methods_thin.csv and its picture.

    python scripts/methods_table.py tune  --data data/cifar10-jpeg   # rate and one key of each method, by kNN on val
    python scripts/methods_table.py train --data data/cifar10-jpeg   # three seeds, with what was chosen
    python scripts/methods_table.py write --data data/cifar10-jpeg   # trains what is missing, then both files

Every run has a `run_id`: the same command goes on where it stopped. Each method has five trials of two epochs: three rates, then two
other values of its key at the best rate. `train` trains seed 0 of all methods, then seed 1, then seed 2. Each run reads the test set once.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from twoviews.methods import METHODS

ROOT = Path(__file__).parent.parent
SEEDS, EPOCHS, TUNING_EPOCHS = (0, 1, 2), 10, 2
RATES = (0.05, 0.1, 0.2)  # of Muon, for a batch of 256
KEYS: dict[str, tuple[str, tuple[Any, ...]]] = {  # of each recipe: its most important key, and values beside the recipe's own
    "cifar_thin": ("temperature", (0.2, 0.5)),
    "dcl_thin": ("temperature", (0.2, 0.5)),
    "moco_thin": ("temperature", (0.07, 0.2)),
    "moco_v3_thin": ("ema_decay", (0.6, 0.99)),
    "nnclr_thin": ("temperature", (0.2, 0.5)),
    "byol_thin": ("ema_decay", (0.6, 0.99)),
    "simsiam_thin": ("predictor_dims", ([128], [512])),
    "swav_thin": ("prototypes", (64, 1024)),
    "dino_thin": ("teacher_temperature", (0.02, 0.07)),
    "barlow_twins_thin": ("off_diagonal", (0.001, 0.02)),
    "vicreg_thin": ("covariance", (0.25, 4.0)),
    "wmse_thin": ("out_dim", (32, 96)),
    "supcon_thin": ("temperature", (0.2, 0.5)),
    "supervised": ("weight_decay", (0.0001, 0.001)),
}


def word(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value).replace(' ', '')}"


class Runs:
    """Runs by name, each trained once.

    Args:
        folder: of the run folders.
        data: folder of the images.
        small: a trial of this script on the bundled data; its figures mean nothing.
    """

    def __init__(self, folder: Path, data: str | None, *, small: bool) -> None:
        self.folder, self.small = folder, small
        self.shared = ["dataset=fashion_mini", "backbone=thin16", "train_size=1000"] if small else [f"data_dir={data}"]

    def summary(self, recipe: str, name: str, *words: str) -> dict[str, Any]:
        """Train a run unless it has finished, and return its summary."""
        if self._finished(name) is None:
            command = [sys.executable, "-m", "twoviews", "pretrain", f"recipe={recipe}", *self.shared, *words]
            command += ["queue_size=512"] if self.small and recipe in ("moco_thin", "nnclr_thin") else []
            subprocess.run([*command, f"runs_dir={self.folder}", f"run_id={name}"], cwd=ROOT, check=True)
        summary = self._finished(name)
        if summary is None:
            raise RuntimeError(f"{name}: has not finished")
        return summary

    def _finished(self, name: str) -> dict[str, Any] | None:
        """Return the summary and manifest of a run, or None if it has not finished."""
        for path in self.folder.glob(f"*-{name}/summary.json"):
            summary: dict[str, Any] = json.loads(path.read_text())
            if summary["evaluations"] and not summary.get("unfinished"):
                return {**summary, "manifest": json.loads((path.parent / "manifest.json").read_text())}
        return None

    def tuned(self, recipe: str) -> dict[str, Any]:
        """Return the changes of a recipe that are best by kNN on val."""
        key, others = KEYS[recipe]
        tried: list[tuple[float, dict[str, Any]]] = []

        def trial(changes: dict[str, Any]) -> None:
            words = [word(name, value) for name, value in changes.items()]
            name = f"tune-{recipe}-{len(tried)}".replace("_", "-")
            common = ("train_on=train", f"epochs={TUNING_EPOCHS}", "probe_every=0", "probes=knn", "seed=0")
            accuracy = knn(self.summary(recipe, name, *common, *words))
            tried.append((accuracy, changes))
            print(f"{recipe}: {' '.join(words)}: kNN on val {100 * accuracy:.1f} %")

        for rate in RATES:
            trial({"base_learning_rate": rate})
        best = max(tried, key=lambda pair: pair[0])[1]
        for value in others:
            trial({**best, key: value})
        return max(tried, key=lambda pair: pair[0])[1]


def knn(summary: dict[str, Any]) -> float:
    return accuracy(summary, probe="knn", k=10, metric="cosine", weights="uniform")


def accuracy(summary: dict[str, Any], **protocol: Any) -> float:
    """Return the accuracy of the trained h by a protocol."""
    rows = [row for row in summary["evaluations"] if row["of"] == "trained" and row["features"] == "h"]
    (found,) = [row["accuracy"] for row in rows if protocol.items() <= row.items()]
    return float(found)


def step_ms(method: str) -> float:
    """Return the milliseconds of a step by `twoviews bench what=methods`, where all methods took turns on one machine."""
    with (ROOT / "results/speed.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["what"], row["way"], row["unit"]) == ("methods", method, "ms a step")]
    return float(rows[-1]["value"])


def row(recipe: str, changes: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of a method: means over seeds, and computed seconds of training, because the runs had other work beside them."""
    words = [word(name, value) for name, value in changes.items()]
    values: dict[str, list[float]] = {
        "knn10": [100 * knn(summary) for summary in found],
        "linear": [100 * accuracy(summary, probe="linear_precomp", solver="lbfgs") for summary in found],
        "rankme": [summary["diagnostics"]["z" if "z" in summary["diagnostics"] else "h"]["rankme"] for summary in found],
        "memory_gib": [summary["train"]["peak_bytes"] / 2**30 for summary in found],
    }
    out: dict[str, Any] = {"method": found[0]["method"], "recipe": recipe, "changes": " ".join(words), "runs": len(found)}
    for name, numbers in values.items():
        out[name] = round(mean(numbers), 2)
        out[f"{name}_std"] = round(stdev(numbers), 2) if len(numbers) > 1 else ""
    out["computed_s"] = round(found[0]["train"]["steps"] * step_ms(found[0]["method"]) / 1000)
    manifest = found[0]["manifest"]
    command = f"twoviews pretrain recipe={recipe} epochs={EPOCHS} probe_every=0 data_dir=data/cifar10-jpeg {' '.join(words)}"
    command += f" seed={','.join(str(summary['seed']) for summary in found)} --multirun"
    origin = {"commit": manifest["commit"], "machine": manifest["machine"], "precision": manifest["precision"]}
    return out | origin | {"torch": manifest["versions"]["torch"], "command": command}


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Draw the accuracies of each method, best kNN first, and its computed seconds of training."""
    rows = sorted(rows, key=lambda one: one["knn10"])
    figure = Figure(figsize=(7.2, 0.9 + 0.29 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    lines = range(len(rows))
    names = [one["method"] + " (uses labels)" * METHODS[one["method"]].uses_labels for one in rows]
    for name, title, colour, marker in (("knn10", "kNN, k = 10", "#0969da", "o"), ("linear", "linear probe", "#bc4c00", "s")):
        spread = [one[f"{name}_std"] or 0 for one in rows]
        left.errorbar([one[name] for one in rows], lines, xerr=spread, fmt=marker, color=colour, markersize=5, capsize=2, label=title)
    left.set_yticks(lines, names)
    left.set_xlabel(f"test accuracy, % (mean and deviation of {min(one['runs'] for one in rows)} seeds)")
    left.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    right.barh(lines, [one["computed_s"] for one in rows], color="#8c959f", height=0.6)
    right.set_xlabel("training, s\n(computed)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#d0d7de", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "train", "write"))
    parser.add_argument("--data", help="folder of CIFAR-10")
    parser.add_argument("--runs", type=Path, help="folder of the run folders; by default runs/methods_thin")
    parser.add_argument("--only", nargs="*", default=list(KEYS), help="recipes")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--to", type=Path, help="file to write; by default results/methods_thin.csv")
    parser.add_argument("--picture", type=Path, help="picture to write; by default docs/methods_thin.png")
    parser.add_argument("--small", action="store_true", help="a trial on the bundled data")
    given = parser.parse_args()
    folder = given.runs or ROOT / ("runs/methods_trial" if given.small else "runs/methods_thin")
    to = given.to or (folder / "methods_trial.csv" if given.small else ROOT / "results/methods_thin.csv")
    every = Runs(folder, given.data, small=given.small)
    chosen = {recipe: every.tuned(recipe) for recipe in given.only}
    if given.what == "tune":
        return
    found: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in given.only}
    for seed, recipe in itertools.product(given.seeds, given.only):
        words = [f"epochs={TUNING_EPOCHS if given.small else EPOCHS}", f"seed={seed}", "probe_every=0"]
        words += [word(name, value) for name, value in chosen[recipe].items()]
        found[recipe].append(every.summary(recipe, f"train-{recipe}-{seed}".replace("_", "-"), *words))
    if given.what == "write":
        rows = [row(recipe, chosen[recipe], found[recipe]) for recipe in given.only]
        with to.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        picture(rows).savefig(given.picture or (to.with_suffix(".png") if given.small else ROOT / "docs/methods_thin.png"), dpi=150)


if __name__ == "__main__":
    main()
