"""Train every method with the same network, data and number of views; write results/methods_thin.csv and its picture.

    python scripts/methods_table.py tune  --data data/cifar10-jpeg   # rate and one key of each method, by kNN on val
    python scripts/methods_table.py train --data data/cifar10-jpeg   # three seeds, with what was chosen
    python scripts/methods_table.py write --data data/cifar10-jpeg   # trains what is missing, then the table and its picture

Every run is a row of results/methods_thin_runs.csv, and what is in this file is not trained again: `--to <folder>` trains all runs
anew. An interrupted run goes on where it stopped. Each method has five trials of two epochs: three rates, then two other values of its
key at the best rate. `train` trains seed 0 of all methods, then seed 1, then seed 2. Each of these runs reads the test set once.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import itertools
import json
import re
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


RUN = ("stage", "method", "recipe", "changes", "split", "epochs", "seed", "knn10", "linear", "rankme", "memory_gib", "steps", "training_s")
ORIGIN = ("commit", "machine", "precision", "torch", "command")
Row = dict[str, str]


class Runs:
    """The rows of a file, one for each run. A run that is not in it is trained, and its row added.

    Args:
        file: of the rows; created if it is missing. Several programs may add rows to it.
        folder: of the run folders.
        data: folder of the images.
        small: a trial of this script on the bundled data; its figures mean nothing.
    """

    def __init__(self, file: Path, folder: Path, data: str | None, *, small: bool) -> None:
        self.file, self.folder, self.data, self.small = file, folder, data, small
        self.shared = ["dataset=fashion_mini", "backbone=thin16", "train_size=1000"] if small else [f"data_dir={data}"]

    def rows(self) -> list[Row]:
        if not self.file.exists():
            return []
        with self.file.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def tuning(self, recipe: str, changes: dict[str, Any]) -> Row:
        """Return the row of a short run that is evaluated on val."""
        return self._row(
            {"stage": "tuning", "recipe": recipe, "changes": words(changes), "split": "val", "epochs": str(TUNING_EPOCHS), "seed": "0"}
        )

    def final(self, recipe: str, changes: dict[str, Any], seed: int) -> Row:
        """Return the row of a run that is evaluated on the test set."""
        epochs = TUNING_EPOCHS if self.small else EPOCHS
        return self._row(
            {"stage": "final", "recipe": recipe, "changes": words(changes), "split": "test", "epochs": str(epochs), "seed": str(seed)}
        )

    def _row(self, run: Row) -> Row:
        for row in self.rows():
            if run.items() <= row.items():
                return row
        row = run | self.train(run)
        if not self.file.exists():
            self.file.write_text(",".join(RUN + ORIGIN) + "\n", encoding="utf-8")
        with self.file.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, RUN + ORIGIN, lineterminator="\n").writerow(row)
        print(f"{run['stage']} {run['recipe']} {run['changes']} seed {run['seed']}: kNN on {run['split']} {row['knn10']} %", flush=True)
        return row

    def train(self, run: Row) -> Row:
        """Train a run, or go on with it, and return the other columns of its row."""
        name = (
            "-".join([run["stage"], run["recipe"], *re.findall(r"[\d.]+", run["changes"]), run["seed"]]).replace("_", "-").replace(".", "")
        )
        command = [f"recipe={run['recipe']}", *self.shared, f"epochs={run['epochs']}", f"seed={run['seed']}"]
        command += ["probe_every=0", "baselines=false"]
        command += ["train_on=train", "probes=knn"] if run["stage"] == "tuning" else []
        command += ["queue_size=512"] if self.small and run["recipe"] in ("moco_thin", "nnclr_thin") else []
        command += run["changes"].split()
        subprocess.run(
            [sys.executable, "-m", "twoviews", "pretrain", *command, f"runs_dir={self.folder}", f"run_id={name}"], cwd=ROOT, check=True
        )
        (folder,) = [path.parent for path in self.folder.glob(f"*-{name}/summary.json")]
        summary, manifest = (json.loads((folder / file).read_text()) for file in ("summary.json", "manifest.json"))
        path = (f"data_dir={self.data}", f"data_dir=data/{Path(self.data or '').name}")  # no row has a path of this machine
        linear = accuracy(summary, probe="linear_precomp", solver="lbfgs") if run["stage"] == "final" else ""
        return {
            "method": summary["method"],
            "knn10": accuracy(summary, probe="knn", k=10, metric="cosine", weights="uniform"),
            "linear": linear,
            "rankme": f"{summary['diagnostics']['z' if 'z' in summary['diagnostics'] else 'h']['rankme']:.1f}",
            "memory_gib": f"{summary['train']['peak_bytes'] / 2**30:.2f}",
            "steps": str(summary["train"]["steps"]),
            "training_s": f"{summary['train']['seconds']:.0f}",
            "commit": manifest["commit"],
            "machine": manifest["machine"],
            "precision": manifest["precision"],
            "torch": manifest["versions"]["torch"],
            "command": f"twoviews pretrain {' '.join(command)}".replace(*path),
        }


def words(changes: dict[str, Any]) -> str:
    return " ".join(f"{key}={json.dumps(value).replace(' ', '')}" for key, value in changes.items())


def accuracy(summary: dict[str, Any], **protocol: Any) -> str:
    """Return the accuracy, in per cent, of the trained h by a protocol."""
    rows = [row for row in summary["evaluations"] if row["of"] == "trained" and row["features"] == "h"]
    (found,) = [row["accuracy"] for row in rows if protocol.items() <= row.items()]
    return f"{100 * found:.2f}"


def tuned(runs: Runs, recipe: str) -> dict[str, Any]:
    """Return the changes of a recipe that are best by kNN on val."""
    key, others = KEYS[recipe]
    tried: list[tuple[float, dict[str, Any]]] = []

    def best() -> dict[str, Any]:
        return max(tried, key=lambda pair: pair[0])[1]

    def trial(changes: dict[str, Any]) -> None:
        tried.append((float(runs.tuning(recipe, changes)["knn10"]), changes))

    for rate in RATES:
        trial({"base_learning_rate": rate})
    at_best_rate = best()
    for value in others:
        trial({**at_best_rate, key: value})
    return best()


def step_ms(method: str) -> float:
    """Return the milliseconds of a step by `twoviews bench what=methods`, where all methods took turns on one machine."""
    with (ROOT / "results/speed.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["what"], row["way"], row["unit"]) == ("methods", method, "ms a step")]
    return float(rows[-1]["value"])


def published(method: str) -> str:
    """Return solo-learn's accuracy of a method in per cent: ResNet-18, 1000 epochs, a linear head trained along; "" if it has none."""
    title = (inspect.getmodule(METHODS[method]).__doc__ or "").split(" (")[0]
    with (ROOT / "results/published.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "solo-learn, README"]
    return next((row["value"] for row in rows if row["training"].split(",")[0] == title), "")


def summarise(found: list[Row]) -> dict[str, Any]:
    """Return the row of a method in the table: means over seeds, and computed seconds: the runs had other work beside them."""
    out: dict[str, Any] = {key: found[0][key] for key in ("method", "recipe", "changes", "epochs")}
    out |= {"runs": len(found), "seeds": "; ".join(row["seed"] for row in found)}
    for name in ("knn10", "linear", "rankme", "memory_gib"):
        numbers = [float(row[name]) for row in found]
        out[name] = round(mean(numbers), 4)
        out[f"{name}_std"] = round(stdev(numbers), 4) if len(numbers) > 1 else ""
    out["computed_s"] = round(int(found[0]["steps"]) * step_ms(found[0]["method"]) / 1000)
    out["published"] = published(found[0]["method"])
    return out | {key: "; ".join(dict.fromkeys(row[key] for row in found)) for key in ORIGIN}


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Draw the accuracies of each method, best kNN first, those that are published, and its computed seconds of training."""
    rows = sorted(rows, key=lambda one: one["knn10"])
    figure = Figure(figsize=(8.4, 0.9 + 0.29 * len(rows)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(3, 1.5, 1))
    lines = range(len(rows))
    names = [one["method"] + " (uses labels)" * METHODS[one["method"]].uses_labels for one in rows]
    for name, title, colour, marker in (("knn10", "kNN, k = 10", "#0969da", "o"), ("linear", "linear probe", "#bc4c00", "s")):
        spread = [one[f"{name}_std"] or 0 for one in rows]
        left.errorbar([one[name] for one in rows], lines, xerr=spread, fmt=marker, color=colour, markersize=5, capsize=2, label=title)
    left.set_yticks(lines, names)
    left.set_xlabel(f"test accuracy, % (mean and deviation of {min(one['runs'] for one in rows)} seeds)")
    left.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    known = [(float(one["published"]), line) for line, one in zip(lines, rows, strict=True) if one["published"]]
    middle.plot([accuracy for accuracy, _ in known], [line for _, line in known], "D", color="#57606a", markersize=5)
    middle.set_xlabel("published, %\n(ResNet-18, 1000 epochs)")
    right.barh(lines, [one["computed_s"] for one in rows], color="#8c959f", height=0.6)
    right.set_xlabel("training, s\n(computed)")
    for axes in (left, middle, right):
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
    parser.add_argument("--to", type=Path, default=ROOT / "results", help="folder of the tables; by default results")
    parser.add_argument("--picture", type=Path, help="picture to write; by default docs/methods_thin.png")
    parser.add_argument("--small", action="store_true", help="a trial on the bundled data, written to the folder of the runs")
    given = parser.parse_args()
    folder = given.runs or ROOT / ("runs/methods_trial" if given.small else "runs/methods_thin")
    to = folder if given.small else given.to
    to.mkdir(parents=True, exist_ok=True)
    runs = Runs(to / "methods_thin_runs.csv", folder, given.data, small=given.small)
    chosen = {recipe: tuned(runs, recipe) for recipe in given.only}
    if given.what == "tune":
        return
    found: dict[str, list[Row]] = {recipe: [] for recipe in given.only}
    for seed, recipe in itertools.product(given.seeds, given.only):
        found[recipe].append(runs.final(recipe, chosen[recipe], seed))
    if given.what == "write":
        rows = [summarise(found[recipe]) for recipe in given.only]
        with (to / "methods_thin.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        picture(rows).savefig(given.picture or (to / "methods_thin.png" if given.small else ROOT / "docs/methods_thin.png"), dpi=150)


if __name__ == "__main__":
    main()
