"""Plots for report.html, drawn with matplotlib."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from twoviews.data.dataset import Dataset
from twoviews.runs import tables
from twoviews.views import Views

GRID_IMAGES, GRID_VIEWS = 8, 6
INK, ACCENT, SOFT, WRONG = "#1f2328", "#0b6e99", "#b8c4cc", "#d1242f"


def confusion_matrix(row: dict[str, Any], classes: Sequence[str]) -> Any:
    """Draw the confusion matrix: rows are true classes, columns predictions, in per cent of the row."""
    counts = torch.tensor(row["confusion"], dtype=torch.float64)
    share = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    figure = _figure(5.4, 4.6)
    axes = figure.add_subplot()
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if len(classes) <= 20:
        names = [printable(name) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(classes)), names, fontsize=8)
        for i, line in enumerate(share.tolist()):
            for j, value in enumerate(line):
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value > 50 else INK)
    return figure


def printable(name: str, most: int = 24) -> str:
    """Return a class name as a plot can show it: shortened, and with escapes for characters that the font lacks.

    Args:
        name: of a class; `$` is no formula.
        most: number of characters.
    """
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    shown = "".join(c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in name)
    shown = shown if len(shown) <= most else f"{shown[: most - 3]}..."
    return shown.replace("$", r"\$")


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _axes(figure: Any, xlabel: str, ylabel: str) -> Any:
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=SOFT, alpha=0.4, linewidth=0.6)
    return axes


def loss_curve(metrics: list[dict[str, Any]]) -> Any:
    """Draw the loss of every step with its running mean, and the learning rate on a second axis."""
    figure = _figure(5.4, 3.1)
    axes = _axes(figure, "epoch", "loss")
    epochs, losses = [row["epoch"] for row in metrics], [row["loss"] for row in metrics]
    axes.plot(epochs, losses, color=SOFT, linewidth=0.6)
    axes.plot(epochs, _running_mean(losses, max(1, len(losses) // 50)), color=ACCENT, linewidth=1.6, label="loss")
    rate = axes.twinx()
    rate.plot(epochs, [row["lr"] for row in metrics], color=INK, linewidth=0.8, linestyle=":", label="learning rate")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.spines["top"].set_visible(False)
    handles = axes.get_legend_handles_labels(), rate.get_legend_handles_labels()
    axes.legend(handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], frameon=False)
    return figure


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - width)]) / min(i + 1, width) for i in range(len(values))]


def knn_curve(metrics: list[dict[str, Any]], summary: dict[str, Any]) -> Any:
    """Draw kNN accuracy on training images during training, with the final accuracies as lines."""
    probes = [(row["epoch"], 100 * value) for row in metrics for name, value in row.items() if name.startswith("val_knn")]
    figure = _figure(5.4, 3.1)
    axes = _axes(figure, "epoch", "kNN accuracy, %")
    if probes:
        axes.plot(*zip(*probes, strict=True), color=ACCENT, marker="o", markersize=3.5, label="val, during training (bank of 10,000)")
    for of, style in (("raw_pixels", ":"), ("random_initialisation", "--"), ("trained", "-")):
        accuracy = tables.headline(summary, of)
        if accuracy is not None:
            label = f"{of.replace('_', ' ')}, {tables.split(summary)}, k=10"
            axes.axhline(100 * accuracy, color=INK, linewidth=0.9, linestyle=style, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return figure


def views_grid(views: Views, images: Tensor) -> Any:
    """Draw some images, each beside views of it.

    Args:
        views: whose augmentation is shown.
        images: (N, C, H, W) uint8; a few of them are drawn.
    """
    n = min(GRID_IMAGES, len(images))
    images = images[torch.linspace(0, len(images) - 1, n).long()].cpu()
    drawn: list[Tensor] = []
    for step in range(-(-GRID_VIEWS // len(views.specs))):
        drawn += views(images, views.draw(0, step, n))
    mean, std = torch.tensor(views.mean).view(-1, 1, 1), torch.tensor(views.std).view(-1, 1, 1)
    shown = [images.float() / 255] + [view * std + mean for view in drawn[:GRID_VIEWS]]
    figure = _figure(0.85 * len(shown), 0.85 * n)
    for row in range(n):
        for column, batch in enumerate(shown):
            axes = figure.add_subplot(n, len(shown), row * len(shown) + column + 1)
            axes.imshow(batch[row].clamp(0, 1).permute(1, 2, 0).squeeze().numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title("image" if column == 0 else f"view {column}", fontsize=8, color=INK)
    return figure


def neighbours_grid(found: dict[str, Any], data: Dataset) -> Any:
    """Draw some images, each beside its nearest training images by raw pixels and by the trained encoder.

    Args:
        found: from `inspection.neighbours`.
        data: whose images they are. With several classes, neighbours of another class have a frame and a cross.
    """
    images, labels = data.split(found["split"])
    several, nearest = len(data.classes) > 1, len(found["trained"][0])
    left = {"raw_pixels": 1.5, "trained": 2.0 + nearest}  # in widths of an image
    margin, width, height = 2.6 * several, 2.0 + 2 * nearest, len(found["queries"])
    figure = _figure(0.62 * (margin + width), 0.62 * (height + 0.6))
    axes = figure.add_subplot(xlim=(-margin, width), ylim=(height, -0.6), aspect="equal")
    axes.set_axis_off()
    text = {"fontsize": 9, "color": INK}
    axes.text(0, -0.15, f"{found['split']} image", **text)
    for line, query in enumerate(found["queries"]):
        _draw(axes, images[query], 0, line)
        if several:
            axes.text(-0.15, line + 0.5, printable(data.classes[labels[query]]), ha="right", va="center", **text)
    for of, start in left.items():
        same = []
        for line, (query, rows) in enumerate(zip(found["queries"], found[of], strict=True)):
            same += (data.labels[rows] == labels[query]).tolist()
            for column, row in enumerate(rows):
                _draw(axes, data.images[row], start + column, line, wrong=several and not same[column - len(rows)])
        name = {"raw_pixels": "nearest by raw pixels", "trained": "nearest by the trained encoder"}[of]
        axes.text(start, -0.15, f"{name}: {sum(same)} of {len(same)} of the same class" if several else name, **text)
    return figure


def embedding_map(positions: dict[str, Any], data: Dataset) -> Any:
    """Draw training images at their positions in the plane.

    Args:
        positions: from `inspection.embedding_map`.
        data: whose images they are.
    """
    figure = _figure(8, 8)
    side = 0.05  # of an image, where the map has side 1
    axes = figure.add_subplot(xlim=(-side, 1 + side), ylim=(1 + side, -side), aspect="equal")
    axes.set_axis_off()
    for row, (x, y) in zip(positions["rows"], positions["xy"], strict=True):
        image = data.images[row].permute(1, 2, 0).squeeze().numpy()
        extent = (x - side / 2, x + side / 2, y + side / 2, y - side / 2)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
    axes.set(xlim=(-side, 1 + side), ylim=(1 + side, -side))  # imshow changes them
    return figure


def _draw(axes: Any, image: Tensor, x: float, y: float, *, wrong: bool = False) -> None:
    """Draw an image (C, H, W) uint8 into the square of side 1 at (x, y)."""
    low, high = 0.03, 0.97
    extent = (x + low, x + high, y + high, y + low)
    axes.imshow(image.permute(1, 2, 0).squeeze().numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
    if wrong:
        axes.plot(
            [x + low, x + high, x + high, x + low, x + low], [y + low, y + low, y + high, y + high, y + low], color=WRONG, linewidth=1.6
        )
        axes.plot(x + 0.84, y + 0.16, marker="x", color=WRONG, markersize=5, markeredgewidth=1.6)


def png(figure: Any) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def data_uri(picture: bytes) -> str:
    """Return a PNG file as a data URI, so that the report is one file."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()
