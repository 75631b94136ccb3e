"""Tables of runs: accuracies over seeds, and the five tables of the seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

Row = dict[str, str]
Run = tuple[dict[str, Any], dict[str, Any]]  # summary, configuration

# Keys in which runs of one recipe may differ and still be seeds of one experiment: the seed, places, and what only watches or reads.
APART = {
    *("seed", "runs_dir", "data_dir", "device", "threads", "compile", "debug", "profile", "resume", "run_id", "max_steps"),
    *("probe_every", "checkpoint_every", "log_interval", "probes", "solver", "protocol", "table"),
    *("probe_epochs", "probe_learning_rate", "probe_momentum", "probe_weight_decay"),
}
# What the first seed's README quotes from the SimCLR paper.
IN_PAPER = {("simclr", "resnet50", "CIFAR-10", "1000"): "~93.5"}


def groups(found: Sequence[Run]) -> list[list[Run]]:
    """Finished runs, those of one configuration but for the seed together."""
    out: dict[tuple[Any, ...], list[Run]] = {}
    for summary, config in found:
        same = tuple(sorted((key, str(value)) for key, value in config.items() if key not in APART))
        out.setdefault((summary["dataset"], summary["train"]["steps"], same), []).append((summary, config))
    return list(out.values())


def first_seed(found: Sequence[Run]) -> list[Row]:
    """The results table of the SimCLR and MoCo seed; the read-out nearest to its own that the runs have."""
    rows = []
    for group in groups(found):
        summary, config = group[0]
        name, accuracies = _nearest(group)
        setting = (summary["method"], summary["backbone"], summary["dataset"].removesuffix(" (JPEG copy)"), _epochs(summary))
        rows.append(
            {
                "Evaluation": name,
                "Batch Size": str(summary["batch_size"]),
                "Backbone": summary["backbone"],
                "Projection Dim": str(config.get("out_dim", "-")),
                "Training Epochs": _epochs(summary),
                "Memory": f"{max(s['train']['peak_bytes'] for s, _ in group) / 2**30:.1f}G",
                "Training Time / Epoch": f"{_seconds(group)} s",
                "Test Acc": spread(accuracies),
                "Test Acc in Paper": IN_PAPER.get(setting, "-"),
            }
            | _about(group)
        )
    return rows


def first_seed_settings(found: Sequence[Run]) -> list[Row]:
    """The hyper-parameter table of that seed: a row for the training, one for each linear read-out like its own."""
    rows = []
    for group in groups(found):
        summary, config = group[0]
        scaled = "" if config["learning_rate"] is not None else f" ({config['base_learning_rate']:g} * batch_size / 256)"
        name = {"simclr": "SimCLR", "moco": "MoCo"}.get(summary["method"], summary["method"])
        training = {
            "Optimization": f"{name} Training",
            "Initial LR": f"{summary['peak_learning_rate']:g}{scaled}",
            "Optimizer": config["optimizer"].upper(),
            "LR Adjustment": _adjustment(config["schedule"], config["min_learning_rate"]),
            "Weight Decay": f"{config['weight_decay']:g}",
            "Momentum": f"{config['momentum']:g}",
            "Temperature": f"{config['temperature']:g}" if "temperature" in config else "-",
        }
        rows.append(training | _about(group))
        for row in summary["readouts"]:
            if row["probe"] == "linear_sgd" and row["of"] == "trained":
                linear = {
                    "Optimization": "Linear, backbone frozen",
                    "Initial LR": f"{row['learning_rate']:g}",
                    "Optimizer": row["optimizer"].upper(),
                    "LR Adjustment": _adjustment("cosine", row["floor"]),
                    "Weight Decay": f"{row['weight_decay']:g}",
                    "Momentum": f"{row['momentum']:g}",
                    "Temperature": "-",
                }
                rows.append(linear | _about(group))
    return rows


def second_seed(found: Sequence[Run]) -> list[Row]:
    """The results table of the single-file SimCLR seed."""
    return [
        {
            "Backbone": group[0][0]["backbone"],
            "Batch": str(group[0][0]["batch_size"]),
            "Sec/epoch": _seconds(group),
            "Loss/batch": _loss(group),
        }
        | _readouts(group)
        | {"Epochs": _epochs(group[0][0])}
        | _about(group)
        for group in groups(found)
    ]


def second_seed_short(found: Sequence[Run]) -> list[Row]:
    """Its table of 100 epochs."""
    return [
        {
            "Epochs": _epochs(group[0][0]),
            "LR": f"{group[0][1]['base_learning_rate']:g}" if group[0][1]["learning_rate"] is None else f"{group[0][1]['learning_rate']:g}",
            "Time": _minutes(group),
            "Loss/batch": _loss(group),
        }
        | _readouts(group)
        | {"Backbone": group[0][0]["backbone"]}
        | _about(group)
        for group in groups(found)
    ]


def race(found: Sequence[Run]) -> list[Row]:
    """Its race table: how long to which kNN accuracy."""
    return [
        {
            "Backbone": group[0][0]["backbone"],
            "Batch": str(group[0][0]["batch_size"]),
            "Epochs": _epochs(group[0][0]),
            "Time": _minutes(group),
            "Loss/batch": _loss(group),
            "kNN k=10": _spread_of(group, _KNN),
        }
        | _about(group)
        for group in groups(found)
    ]


TABLES: dict[str, Callable[[Sequence[Run]], list[Row]]] = {
    "first_seed": first_seed,
    "first_seed_settings": first_seed_settings,
    "second_seed": second_seed,
    "second_seed_short": second_seed_short,
    "race": race,
}


def _about(group: list[Run]) -> Row:
    """What every table says beside a seed's columns: of which recipe, on which pixels, how often."""
    summary = group[0][0]
    splits = {row["split"] for row in summary["readouts"]} - {"test"}
    marked = f"{summary['recipe']}{' (uses labels)' if summary['uses_labels'] else ''}"
    return {"Recipe": marked, "Data": ", ".join([summary["dataset"], *sorted(splits)]), "Seeds": str(len({s["seed"] for s, _ in group}))}


def _readouts(group: list[Run]) -> Row:
    solvers = [{"probe": "linear_precomp", "solver": solver} for solver in ("adam", "sklearn", "lbfgs")]
    return {
        "kNN k=5": _spread_of(group, {**_KNN, "k": 5}),
        "kNN k=10": _spread_of(group, _KNN),
        "lin precomp": _spread_of(group, solvers[0] | _STANDARD, *solvers),
        "lin augm": _spread_of(group, {"probe": "linear_augm", **_STANDARD}, {"probe": "linear_augm"}),
    }


def _nearest(group: list[Run]) -> tuple[str, list[float]]:
    """The read-out nearest to the first seed's own that the first run has: what it is called, and its accuracies in per cent."""
    for wanted in ({"probe": "linear_sgd"}, {"probe": "linear_augm"}, {"probe": "linear_precomp"}, _KNN):
        row = _row(group[0][0], **wanted)
        if row:
            return f"{_named(row)} (backbone frozen)", _accuracies(group, **wanted)
    return "-", []


def _adjustment(schedule: str, floor: float) -> str:
    return f"Cosine Annealing (to min lr = {floor:g})" if schedule == "cosine" else schedule


def _epochs(summary: dict[str, Any]) -> str:
    steps, planned = summary["train"]["steps"], summary["train"].get("planned_steps")
    return str(summary["epochs"]) + (f" (cut at step {steps} of {planned})" if planned and steps < planned else "")


def _seconds(group: list[Run]) -> str:
    """Of an epoch; marked where no run took a whole one, so that it was computed from its steps."""
    trains = [summary["train"] for summary, _ in group]
    whole = all(t["steps"] * s["epochs"] >= t.get("planned_steps", 0) for t, (s, _) in zip(trains, group, strict=True))
    return ("" if whole else "computed ") + spread([t["sec_per_epoch"] for t in trains if t["sec_per_epoch"] is not None])


def _minutes(group: list[Run]) -> str:
    return f"{spread([s['train']['seconds'] / 60 for s, _ in group])} min"


def _loss(group: list[Run]) -> str:
    return spread([s["train"]["loss"] for s, _ in group], 2)


_KNN = {"probe": "knn", "k": 10, "metric": "cosine", "weights": "uniform"}
_SOLVED = {"probe": "linear_precomp", "solver": "lbfgs"}
_STANDARD = {"learning_rate": 0.1, "epochs": 100, "weight_decay": 0.0, "momentum": 0.9}  # of the second seed's probes


def _row(summary: dict[str, Any], of: str = "trained", **wanted: Any) -> dict[str, Any]:
    """The read-out of `of` with these fields, or {}: of several the one that was trained longest and not cut, the last of those.

    On the run's own data: what was read out on another data set (`on`) is not looked at.
    """
    own = [row for row in summary["readouts"] if row["of"] == of and "on" not in row]
    found = [row for row in own if all(row.get(k) == v for k, v in wanted.items())]
    best = max(enumerate(found), key=lambda row: ("steps" not in row[1], row[1].get("epochs", 0), row[0]), default=None)
    return best[1] if best else {}


def _named(row: dict[str, Any]) -> str:
    if row["probe"] == "knn":
        return f"kNN k={row['k']} {row['metric']}"
    if row.get("solver") == "lbfgs":
        return f"{row['probe']} L-BFGS"
    solver = "scikit-learn " if row.get("solver") == "sklearn" else ""
    return f"{row['probe']} {solver}{row['epochs']} epochs" + (f", cut at step {row['steps']}" if "steps" in row else "")


def _accuracies(group: list[Run], **wanted: Any) -> list[float]:
    """In per cent, of the runs that were read out in the same way as the first."""
    rows = [row for summary, _ in group if (row := _row(summary, **wanted))]
    return [100 * row["accuracy"] for row in rows if _how(row) == _how(rows[0])]


def _how(row: dict[str, Any]) -> dict[str, Any]:
    """What makes two read-outs one protocol: all that a row says but its result, its seed and what L-BFGS chose."""
    chosen = ("weight_decay",) if row.get("solver") == "lbfgs" else ("epochs",) if row.get("solver") == "sklearn" else ()
    return {key: value for key, value in row.items() if key not in ("accuracy", "per_class", "confusion", "seconds", "seed", *chosen)}


def _spread_of(group: list[Run], *wanted: dict[str, Any]) -> str:
    """`mean ± std` of the first read-out of `wanted` that there is, with a remark where a probe is not the second seed's own."""
    for fields in wanted:
        if row := _row(group[0][0], **fields):
            return spread(_accuracies(group, **fields)) + _remark(row)
    return ""


def _remark(row: dict[str, Any]) -> str:
    """What sets a probe apart from the second seed's own."""
    if row["probe"] == "knn":
        return ""
    if row.get("solver") in ("lbfgs", "sklearn"):
        return " (L-BFGS)" if row["solver"] == "lbfgs" else f" (scikit-learn, {row['epochs']} passes)"
    said = [("epochs", "{} epochs"), ("learning_rate", "rate {:g}"), ("weight_decay", "decay {:g}"), ("momentum", "momentum {:g}")]
    differs = [text.format(row[key]) for key, text in said if row[key] != _STANDARD[key]]
    cut = [f"cut at step {row['steps']}"] if "steps" in row else []
    return f" ({', '.join(differs + cut)})" if differs + cut else ""


def split(summary: dict[str, Any]) -> str:
    """What a run's own data were read out on: `test`, `val`, or what says more; `` where nothing was read out."""
    return next((str(row["split"]) for row in summary["readouts"] if "on" not in row), "")


def is_headline(row: dict[str, Any]) -> bool:
    """Whether a read-out is one of the two that runs are compared by."""
    return any(wanted.items() <= row.items() for wanted in (_KNN, _SOLVED))


def headline(summary: dict[str, Any], of: str = "trained") -> float | None:
    """kNN k=10 cosine accuracy of a run, or None."""
    return _row(summary, of, **_KNN).get("accuracy")


def linear(summary: dict[str, Any]) -> float | None:
    """Accuracy of the linear probe that L-BFGS solved on the trained backbone's features, or None."""
    return _row(summary, **_SOLVED).get("accuracy")


def percent(value: float | None) -> str:
    """An accuracy in [0, 1] in per cent; nothing for None."""
    return "" if value is None else f"{100 * value:.1f}"


def spread(values: list[float], digits: int = 1) -> str:
    """`mean ± std`, the std of a sample; alone where there is one value."""
    if not values:
        return ""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")
