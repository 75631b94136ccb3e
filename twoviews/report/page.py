"""What the template of `report.html` is filled with: the sections of a run, each from its summary, its metrics and its data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from twoviews.data.dataset import Dataset
from twoviews.probes import protocols
from twoviews.report import pictures
from twoviews.report.charts import Chart, Line
from twoviews.report.text import KINDS
from twoviews.runs import tables
from twoviews.views import Views

MOST_CLASSES = 20  # of a confusion matrix and of the map's legend; with more, the most frequent confusions are listed
CONFUSIONS, PAIRS, IMAGES, VIEWS = 12, 6, 6, 6  # that are shown
MAP, SHEET = 360, 32  # side of the map in its own units, and columns of the sheet of its images
CURVES = {  # of `metrics.jsonl`: title
    "loss": "loss",
    "lr": "learning rate",
    "val_knn": "kNN accuracy on val, %",
    "z_spread": "spread of z (1 is even, 0 collapsed)",
    "z_rankme": "RankMe of z",
    "views_per_s": "views/s, mean so far",
}


def in_words(summary: dict[str, Any]) -> str:
    """Return what a run did and reached, in two sentences or three."""
    labels = "with" if summary["uses_labels"] else "without"
    images = "all images" if summary["train_on"] == "train+val+test" else "the training images"
    text = f"{summary['method']} trained {summary['backbone']} for {tables.epochs(summary)} epochs on {images} of {summary['dataset']}"
    text += f", {labels} labels."
    for probe, begins in (
        (tables.headline, f" On {tables.split(summary)}, the ten nearest training images by its features name the right class for"),
        (tables.linear, " A linear classifier on its features is right for"),
    ):
        trained, pixels, random = (probe(summary, of) for of in ("trained", "raw_pixels", "random_initialisation"))
        if trained is not None:
            baselines = {"on raw pixels": pixels, "with the untrained encoder": random}
            beside = [f"{name} {100 * value:.1f} %" for name, value in baselines.items() if value is not None]
            text += f"{begins} {100 * trained:.1f} % of the images{' (' + ', '.join(beside) + ')' if beside else ''}."
    return text


def accuracies(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Return a row per protocol with the accuracies in per cent of the trained encoder and of the two baselines."""
    cells = {(protocols.protocol(row), row["of"]): row for row in summary["evaluations"]}
    names = dict.fromkeys(name for name, of in cells if of in KINDS)
    return [
        {"protocol": name} | {of: f"{100 * cells[name, of]['accuracy']:.1f}" if (name, of) in cells else "" for of in KINDS}
        for name in names
    ]


def curves(metrics: list[dict[str, Any]], summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the charts of a run's training: those whose values were measured."""
    charts = []
    for key, title in titles(summary).items():
        if points := series(metrics, key):
            marks = {}
            if key == "val_knn" and (final := tables.headline(summary)) is not None:
                marks = {f"{tables.split(summary)}, at the end": 100 * final}
            charts.append(Chart(title, [Line("", points)], marks).drawn())
    return charts


def titles(summary: dict[str, Any]) -> dict[str, str]:
    """Return {key of the metrics: title} for a run: a method without a projector has no z, and labels may have been trained on."""
    found = dict(CURVES)
    if summary["uses_labels"] and summary["train_on"] != "train":
        found["val_knn"] += " (whose labels are trained on)"
    if summary["diagnostics"] and "z" not in summary["diagnostics"]:
        found = {key: title.replace(" of z", " of h") for key, title in found.items()}
    return found


def series(metrics: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return (epoch, value) of the rows that have a key, or one that begins with it; accuracies in per cent."""
    scale = 100 if key == "val_knn" else 1
    found = ((row["epoch"], next((value for name, value in row.items() if name.startswith(key)), None)) for row in metrics)
    return [(epoch, scale * value) for epoch, value in found if isinstance(value, int | float)]


def embedding_map(summary: dict[str, Any], data: Dataset) -> dict[str, Any] | None:
    """Return the map of a run: marks, their images in one sheet, and a legend."""
    found = summary.get("map")
    if not found:
        return None
    images, labels = data.split(found["split"]) if "split" in found else (data.images, data.labels)  # older runs: training images
    rows = torch.tensor(found["rows"])
    several = 1 < len(data.classes) <= MOST_CLASSES
    chosen = labels[rows].tolist() if several else [0] * len(rows)
    legend = [
        {"name": name, "colour": label % pictures.COLOURS, "path": f"M8 8{pictures.SHAPES[pictures.shape(label)]}"}
        for label, name in enumerate(data.classes)
    ]
    return {
        "by": found.get("by", "t-SNE"),
        "split": found.get("split", "train"),
        "points": pictures.points(found["xy"], chosen, MAP),
        "legend": legend if several else [],
        "size": MAP,
        "sheet": pictures.sheet(images[rows], SHEET),
        "columns": SHEET,
        "sheet_rows": -(-len(rows) // SHEET),
        "names": [data.classes[label] for label in labels[rows].tolist()] if len(data.classes) > 1 else [],
    }


def neighbours(summary: dict[str, Any], data: Dataset) -> dict[str, Any] | None:
    """Return images beside their nearest training images, by raw pixels and by the encoder."""
    found = summary.get("neighbours")
    if not found:
        return None
    images, labels = data.split(found["split"])
    several, lines, same = len(data.classes) > 1, [], {"raw_pixels": [0, 0], "trained": [0, 0]}
    for number, query in enumerate(found["queries"]):
        line: dict[str, Any] = {"image": pictures.picture(images[query]), "name": data.classes[labels[query]] if several else ""}
        for of in ("raw_pixels", "trained"):
            line[of] = []
            for place, row in enumerate(found[of][number]):
                right = bool(data.labels[row] == labels[query])
                same[of][0] += right
                same[of][1] += 1
                cosine = f"{found['similarity'][number][place]:.2f}" if of == "trained" and "similarity" in found else ""
                name = data.classes[data.labels[row]] if several else ""
                shown = {"image": pictures.picture(data.images[row]), "name": name, "cosine": cosine}
                line[of].append(shown | {"wrong": several and not right})
        lines.append(line)
    of_classes = f"{len(lines)} of {len(data.classes)} classes" if len(lines) < len(data.classes) else "each class"
    return {
        "split": found["split"],
        "lines": lines,
        "several": several,
        "of_classes": of_classes,
        "same": {of: f"{a} of {b}" for of, (a, b) in same.items()},
    }


def mistakes(summary: dict[str, Any], data: Dataset) -> dict[str, Any] | None:
    """Return the images whose neighbours agree on a wrong class."""
    found = summary.get("mistakes")
    if not found or not found["rows"]:
        return None
    images = data.split(found["split"])[0]
    shown = [
        {"image": pictures.picture(images[row]), "is": data.classes[label], "said": data.classes[predicted], "votes": votes}
        for row, label, predicted, votes in zip(*(found[key] for key in ("rows", "labels", "predicted", "votes")), strict=True)
    ]
    return {**found, "images": shown}


def duplicates(summary: dict[str, Any], data: Dataset) -> dict[str, Any] | None:
    """Return pairs of a test image and a training image that are nearly equal."""
    found = summary.get("duplicates")
    if not found:
        return None
    images, labels = data.split(found["split"])
    several = len(data.classes) > 1
    shown = [
        {
            "images": [pictures.picture(images[row]), pictures.picture(data.images[other])],
            "names": [data.classes[labels[row]], data.classes[data.labels[other]]] if several else ["", ""],
        }
        for row, other in found["pairs"][:PAIRS]
    ]
    return {**found, "shown": shown}


def confusions(summary: dict[str, Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the confusion matrix of each headline probe in per cent of the true class, or its most frequent confusions."""
    out = []
    for row in summary["evaluations"]:
        if row["of"] == "trained" and "on" not in row and "confusion" in row:
            counts = torch.tensor(row["confusion"], dtype=torch.float64)
            share = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
            matrix: dict[str, Any] = {"protocol": protocols.protocol(row), "classes": list(classes), "rows": [], "pairs": []}
            if len(classes) <= MOST_CLASSES:
                matrix["rows"] = [[round(value) for value in line] for line in share.tolist()]
            else:
                matrix["pairs"] = _frequent(share, classes)
            out.append(matrix)
    return out


def _frequent(share: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the confusions with the largest share of their true class."""
    off = share.clone().fill_diagonal_(0)
    values, places = off.flatten().topk(min(CONFUSIONS, off.numel()))
    pairs = [divmod(place, len(classes)) for place in places.tolist()]
    return [
        {"is": classes[true], "said": classes[predicted], "share": f"{value:.0f}"}
        for (true, predicted), value in zip(pairs, values.tolist(), strict=True)
        if value
    ]


def views(made: Views, images: Tensor) -> list[list[str]]:
    """Return some images, each with views of it."""
    return pictures.drawn_views(made, images[torch.linspace(0, len(images) - 1, min(IMAGES, len(images))).long()].cpu(), VIEWS)
