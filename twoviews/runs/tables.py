"""Tables of runs: accuracies over seeds, and the tables of the reference projects."""

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

from twoviews.config.schema import keys, show

Row = dict[str, str]
Run = tuple[dict[str, Any], dict[str, Any]]  # summary, configuration

SHOWN = ("seed", "recipe", "dataset", "train_on")  # settings with a column in every table
DIFFERS = "differs by"  # the column for settings without one

# What the README of p3i0t quotes from the SimCLR paper.
IN_PAPER = {("simclr", "resnet50", "CIFAR-10", "1000"): "~93.5"}

_KNN = {"probe": "knn", "k": 10, "metric": "cosine", "weights": "uniform"}
_SOLVED = {"probe": "linear_precomp", "solver": "lbfgs"}
_STANDARD = {"learning_rate": 0.1, "epochs": 100, "weight_decay": 0.0, "momentum": 0.9}  # of dkobak's probes
_SOLVERS = [{"probe": "linear_precomp", "solver": solver} for solver in ("adam", "sklearn", "lbfgs")]
PROBES: dict[str, list[dict[str, Any]]] = {  # columns of dkobak's tables: the first of these probes that a run has
    "kNN k=5": [{**_KNN, "k": 5}],
    "kNN k=10": [_KNN],
    "lin precomp": [_SOLVERS[0] | _STANDARD, *_SOLVERS],
    "lin augm": [{"probe": "linear_augm", **_STANDARD}, {"probe": "linear_augm"}],
}


def groups(found: Sequence[Run]) -> list[list[Run]]:
    """Return finished runs in groups that differ only in the seed: all other science keys and the data are equal.

    Args:
        found: the runs, oldest first. Of runs with the same seed, which repeat each other, a group has the newest.
    """
    out: dict[tuple[Any, ...], dict[Any, Run]] = {}
    science = set(keys("science")) - {"seed"}
    for summary, config in found:
        same = tuple(sorted((key, str(value)) for key, value in config.items() if key in science and value is not None))
        out.setdefault((summary["dataset"], digest(summary), summary["train"]["steps"], same), {})[config.get("seed")] = (summary, config)
    return [list(group.values()) for group in out.values()]


def differences(rows: Sequence[Run], shown: Sequence[str]) -> list[str]:
    """Return what sets each of several runs apart from the others of its recipe.

    Args:
        rows: the runs; the summary of one that has not finished is {}.
        shown: settings that have a column, besides `SHOWN`.

    Returns:
        for each run the settings that have no column and are not the same in all these runs, and the beginning of the images'
        checksum if images of one name differ.
    """
    without = [key for key in keys("science") if key not in (*SHOWN, *shown)]
    values: dict[tuple[Any, str], set[str]] = {}  # of each recipe and setting
    digests: dict[tuple[Any, Any], set[str | None]] = {}  # of each recipe and data set
    for summary, config in rows:
        for key in without:
            values.setdefault((config.get("recipe"), key), set()).add(str(config.get(key)))
        digests.setdefault((config.get("recipe"), summary.get("dataset")), set()).add(digest(summary))
    out = []
    for summary, config in rows:
        recipe = config.get("recipe")
        several = summary and len(digests[recipe, summary["dataset"]]) > 1
        images = [f"images {(digest(summary) or 'unknown')[:8]}"] if several else []
        out.append(", ".join([f"{key}={show(config.get(key))}" for key in without if len(values[recipe, key]) > 1] + images))
    return out


def told_apart(found: Sequence[Run], *shown: str) -> list[tuple[list[Run], Row]]:
    """Return the groups of runs, each with a column that says how it differs from others of its recipe; {} if no row has any.

    Args:
        found: the runs, oldest first.
        shown: see `differences`.
    """
    every = groups(found)
    texts = differences([group[0] for group in every], shown)
    return [(group, {DIFFERS: text} if any(texts) else {}) for group, text in zip(every, texts, strict=True)]


def p3i0t(found: Sequence[Run]) -> list[Row]:
    """Return the results table of p3i0t/SimCLR-CIFAR10, with the probe of each run that is nearest to its own."""
    rows = []
    for group, differs in told_apart(found, "backbone", "epochs", "batch_size", "out_dim"):
        summary, config = group[0]
        name, accuracies = _nearest_probe(group)
        setting = (summary["method"], summary["backbone"], summary["dataset"].removesuffix(" (JPEG copy)"), epochs(summary))
        rows.append(
            {
                "Evaluation": name,
                "Batch Size": str(summary["batch_size"]),
                "Backbone": summary["backbone"],
                "Projection Dim": str(config.get("out_dim", "-")),
                "Training Epochs": epochs(summary),
                "Memory": f"{max(s['train']['peak_bytes'] for s, _ in group) / 2**30:.1f}G",
                "Training Time / Epoch": f"{_seconds(group)} s",
                "Test Acc": mean_std(accuracies),
                "Test Acc in Paper": IN_PAPER.get(setting, "-"),
            }
            | _shared_columns(group)
            | differs
        )
    return rows


def p3i0t_settings(found: Sequence[Run]) -> list[Row]:
    """Return the settings table of p3i0t/SimCLR-CIFAR10: a row for the training, and one for each linear probe like its own."""
    rows = []
    for group, differs in told_apart(found):
        summary, config = group[0]
        scaled = "" if config["learning_rate"] is not None else f" ({config['base_learning_rate']:g} * batch_size / 256)"
        name = {"simclr": "SimCLR", "moco": "MoCo"}.get(summary["method"], summary["method"])
        training = {
            "Optimization": f"{name} Training",
            "Initial LR": f"{summary['peak_learning_rate']:g}{scaled}",
            "Optimizer": config["optimizer"].upper(),
            "LR Adjustment": _schedule_name(config["schedule"], config["min_learning_rate"]),
            "Weight Decay": f"{config['weight_decay']:g}",
            "Momentum": f"{config['momentum']:g}",
            "Temperature": f"{config['temperature']:g}" if "temperature" in config else "-",
        }
        rows.append(training | _shared_columns(group) | differs)
        for row in summary["evaluations"]:
            if row["probe"] == "linear_sgd" and row["of"] == "trained":
                linear = {
                    "Optimization": "Linear, backbone frozen",
                    "Initial LR": f"{row['learning_rate']:g}",
                    "Optimizer": row["optimizer"].upper(),
                    "LR Adjustment": _schedule_name("cosine", row["floor"]),
                    "Weight Decay": f"{row['weight_decay']:g}",
                    "Momentum": f"{row['momentum']:g}",
                    "Temperature": "-",
                }
                rows.append(linear | _shared_columns(group) | differs)
    return rows


def dkobak(found: Sequence[Run]) -> list[Row]:
    """Return the results table of dkobak/simclr-cifar10."""
    return _dkobak(found, "Backbone", "Batch", "Sec/epoch", "Loss/batch", *PROBES, "Epochs")


def dkobak_short(found: Sequence[Run]) -> list[Row]:
    """Return its table for 100 epochs."""
    return _dkobak(found, "Epochs", "LR", "Time", "Loss/batch", *PROBES, "Backbone")


def race(found: Sequence[Run]) -> list[Row]:
    """Return its race table: training time and kNN accuracy."""
    return _dkobak(found, "Backbone", "Batch", "Epochs", "Time", "Loss/batch", "kNN k=10")


def _dkobak(found: Sequence[Run], *columns: str) -> list[Row]:
    rows = []
    shown = [setting for column, setting in (("Backbone", "backbone"), ("Batch", "batch_size"), ("Epochs", "epochs")) if column in columns]
    for group, differs in told_apart(found, *shown):
        summary, config = group[0]
        rate = config["base_learning_rate"] if config["learning_rate"] is None else config["learning_rate"]
        minutes = mean_std([s["train"]["seconds"] / 60 for s, _ in group])
        cells = {"Backbone": summary["backbone"], "Batch": str(summary["batch_size"]), "Epochs": epochs(summary), "LR": f"{rate:g}"}
        cells |= {"Sec/epoch": _seconds(group), "Time": f"{minutes} min"}
        cells |= {"Loss/batch": mean_std([s["train"]["loss"] for s, _ in group], 2)}
        cells |= {name: _mean_std_of(group, *fields) for name, fields in PROBES.items()}
        rows.append({name: cells[name] for name in columns} | _shared_columns(group) | differs)
    return rows


TABLES: dict[str, Callable[[Sequence[Run]], list[Row]]] = {
    "p3i0t": p3i0t,
    "p3i0t_settings": p3i0t_settings,
    "dkobak": dkobak,
    "dkobak_short": dkobak_short,
    "race": race,
}


def _shared_columns(group: list[Run]) -> Row:
    """Return the columns that every table has: recipe, data and number of seeds."""
    summary = group[0][0]
    splits = {row["split"] for row in summary["evaluations"]} - {"test"}
    marked = f"{summary['recipe']}{' (uses labels)' if summary['uses_labels'] else ''}"
    return {"Recipe": marked, "Data": ", ".join([summary["dataset"], *sorted(splits)]), "Seeds": str(len({s["seed"] for s, _ in group}))}


def _nearest_probe(group: list[Run]) -> tuple[str, list[float]]:
    """Return the name and the accuracies in per cent of the probe that is nearest to p3i0t's."""
    for wanted in ({"probe": "linear_sgd"}, {"probe": "linear_augm"}, {"probe": "linear_precomp"}, _KNN):
        row = _row(group[0][0], **wanted)
        if row:
            return f"{_probe_name(row)} (backbone frozen)", _accuracies(group, **wanted)
    return "-", []


def _schedule_name(schedule: str, floor: float) -> str:
    return f"Cosine Annealing (to min lr = {floor:g})" if schedule == "cosine" else schedule


def epochs(summary: dict[str, Any]) -> str:
    """Return the number of epochs, with a remark where a run was cut short."""
    steps, planned = summary["train"]["steps"], summary["train"].get("planned_steps")
    return str(summary["epochs"]) + (f" (cut at step {steps} of {planned})" if planned and steps < planned else "")


def _seconds(group: list[Run]) -> str:
    """Return the seconds of an epoch, marked as computed where no run finished an epoch."""
    trains = [summary["train"] for summary, _ in group]
    whole = all(t["steps"] * s["epochs"] >= t.get("planned_steps", 0) for t, (s, _) in zip(trains, group, strict=True))
    return ("" if whole else "computed ") + mean_std([t["sec_per_epoch"] for t in trains if t["sec_per_epoch"] is not None])


def _row(summary: dict[str, Any], of: str = "trained", **wanted: Any) -> dict[str, Any]:
    """Return the evaluation of `of` with these fields on the run's own data, or {}.

    Of several, it is the one with most epochs that was not cut short, and the last of those.
    """
    own = [row for row in summary["evaluations"] if row["of"] == of and "on" not in row]
    found = [row for row in own if all(row.get(k) == v for k, v in wanted.items())]
    best = max(enumerate(found), key=lambda row: ("steps" not in row[1], row[1].get("epochs", 0), row[0]), default=None)
    return best[1] if best else {}


def _probe_name(row: dict[str, Any]) -> str:
    if row["probe"] == "knn":
        return f"kNN k={row['k']} {row['metric']}"
    if row.get("solver") == "lbfgs":
        return f"{row['probe']} L-BFGS"
    solver = "scikit-learn " if row.get("solver") == "sklearn" else ""
    return f"{row['probe']} {solver}{row['epochs']} epochs" + (f", cut at step {row['steps']}" if "steps" in row else "")


def _accuracies(group: list[Run], **wanted: Any) -> list[float]:
    """Return accuracies in per cent of the runs that have the same protocol as the first."""
    rows = [row for summary, _ in group if (row := _row(summary, **wanted))]
    return [100 * row["accuracy"] for row in rows if _protocol(row) == _protocol(rows[0])]


def _protocol(row: dict[str, Any]) -> dict[str, Any]:
    """Return what defines a protocol: all fields but the result, the seed and what the solver chose."""
    chosen = ("weight_decay",) if row.get("solver") == "lbfgs" else ("epochs",) if row.get("solver") == "sklearn" else ()
    return {key: value for key, value in row.items() if key not in ("accuracy", "per_class", "confusion", "seconds", "seed", *chosen)}


def _mean_std_of(group: list[Run], *wanted: dict[str, Any]) -> str:
    """Return `mean ± std` of the first probe of `wanted` that exists, with a remark where its settings are not dkobak's."""
    for fields in wanted:
        if row := _row(group[0][0], **fields):
            return mean_std(_accuracies(group, **fields)) + _remark(row)
    return ""


def _remark(row: dict[str, Any]) -> str:
    """Return how the settings of a probe differ from dkobak's."""
    if row["probe"] == "knn":
        return ""
    if row.get("solver") in ("lbfgs", "sklearn"):
        return " (L-BFGS)" if row["solver"] == "lbfgs" else f" (scikit-learn, {row['epochs']} passes)"
    said = [("epochs", "{} epochs"), ("learning_rate", "rate {:g}"), ("weight_decay", "decay {:g}"), ("momentum", "momentum {:g}")]
    differs = [text.format(row[key]) for key, text in said if row[key] != _STANDARD[key]]
    cut = [f"cut at step {row['steps']}"] if "steps" in row else []
    return f" ({', '.join(differs + cut)})" if differs + cut else ""


def digest(summary: dict[str, Any]) -> str | None:
    """Return the checksum of the images of a run, if its manifest is known."""
    found: str | None = summary.get("manifest", {}).get("data_digest")
    return found


def split(summary: dict[str, Any]) -> str:
    """Return the split that a run was evaluated on, such as `test` or `val`; empty without evaluations."""
    return next((str(row["split"]) for row in summary["evaluations"] if "on" not in row), "")


def is_headline(row: dict[str, Any]) -> bool:
    """Return whether an evaluation is one of the two that runs are compared by."""
    return any(wanted.items() <= row.items() for wanted in (_KNN, _SOLVED))


def headline(summary: dict[str, Any], of: str = "trained") -> float | None:
    """Return the kNN k=10 cosine accuracy of a run, or None."""
    return _row(summary, of, **_KNN).get("accuracy")


def linear(summary: dict[str, Any], of: str = "trained") -> float | None:
    """Return the accuracy of the L-BFGS linear probe, or None."""
    return _row(summary, of, **_SOLVED).get("accuracy")


def percent(value: float | None) -> str:
    """Return an accuracy in [0, 1] as per cent; an empty text for None."""
    return "" if value is None else f"{100 * value:.1f}"


def mean_std(values: list[float], digits: int = 1) -> str:
    """Return `mean ± std` (sample standard deviation), or the single value."""
    if not values:
        return ""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")
