"""`twoviews report`: one HTML file with the command, the table, the curves and real images with their views."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twoviews import build, runs, tables
from twoviews.config import Config
from twoviews.probes import protocols

GRID_IMAGES, GRID_VIEWS = 8, 6
INK, ACCENT, SOFT = "#1f2328", "#0b6e99", "#b8c4cc"


def run(cfg: Config) -> int:
    """The verb: write a finished run's report again."""
    path = runs.find(cfg.run, Path(cfg.runs_dir))
    if not (path / runs.SUMMARY).is_file():
        raise ValueError(f"run={path}: not finished: twoviews pretrain resume={path} goes on")
    stored = runs.config(path)
    with runs.RunFolder(path) as folder:
        here = {
            "data_dir": cfg.data_dir or stored["data_dir"],
            "init": None,
            "device": cfg.device,
            "threads": cfg.threads,
        }
        parts = build.build(Config({**cfg, **stored, **here}))
        runs.check_data(path, parts.dataset.digest)
        write(folder, parts)
    return 0


def write(folder: runs.RunFolder, parts: build.Parts) -> None:
    """Write `report.html` of a finished run, if the extra `report` is installed; say what to install if not."""
    try:
        import jinja2
        import matplotlib  # noqa: F401 - asked for here, drawn with below
    except ImportError:
        print("no report.html: pip install 'twoviews[report]', then twoviews report")
        return
    summary, manifest, metrics = (
        runs.read_json(folder.path, runs.SUMMARY),
        runs.read_json(folder.path, runs.MANIFEST),
        runs.metrics(folder.path),
    )
    source = resources.files("twoviews").joinpath("templates/report.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )
    html = template.render(
        summary=summary,
        manifest=manifest,
        run=folder.path.name,
        rows=_rows(summary),
        loss=_picture(_loss_curve(metrics)),
        knn=_picture(_knn_curve(metrics, summary)),
        views=_picture(_views_grid(parts)),
        confusions=[(name, _picture(_confusion(row, parts.dataset.classes))) for name, row in _headlines(summary)],
        diagnostics=summary.get("diagnostics", {}),  # runs of before they were taken have none
        config=(folder.path / runs.CONFIG).read_text(encoding="utf-8"),
    )
    folder.write(runs.REPORT, html)
    print(f"report: {folder.path / runs.REPORT}")


def _rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    cells = {(protocols.protocol(row), row["of"]): row for row in summary["readouts"]}
    kinds = ("raw_pixels", "untrained", "trained")
    names = dict.fromkeys(name for name, of in cells if of in kinds)
    return [
        {"protocol": name} | {of: f"{100 * cells[name, of]['accuracy']:.1f}" if (name, of) in cells else "" for of in kinds}
        for name in names
    ]


def _headlines(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The trained backbone's read-outs that say which class was taken for which, with their protocols."""
    return [
        (protocols.protocol(row), row) for row in summary["readouts"] if row["of"] == "trained" and "confusion" in row and "on" not in row
    ]


def _confusion(row: dict[str, Any], classes: Sequence[str]) -> Any:
    """Rows are classes, columns what they were taken for, in per cent of the row; the diagonal is the accuracy of each class."""
    counts = torch.tensor(row["confusion"], dtype=torch.float64)
    share = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    figure = _figure(5.4, 4.6)
    axes = figure.add_subplot()
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    if len(classes) <= 20:
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        for i, line in enumerate(share.tolist()):
            for j, value in enumerate(line):
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value > 50 else INK)
    return figure


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


def _loss_curve(metrics: list[dict[str, Any]]) -> Any:
    """Loss of every step, faint, with its running mean; the learning rate on its own axis."""
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


def _knn_curve(metrics: list[dict[str, Any]], summary: dict[str, Any]) -> Any:
    """kNN on training images while training, with the final read-outs of pixels and of the untrained backbone as lines."""
    probes = [(row["epoch"], 100 * value) for row in metrics for name, value in row.items() if name.startswith("val_knn")]
    figure = _figure(5.4, 3.1)
    axes = _axes(figure, "epoch", "kNN accuracy, %")
    if probes:
        axes.plot(
            *zip(*probes, strict=True),
            color=ACCENT,
            marker="o",
            markersize=3.5,
            label="val, while training (bank of 10,000)",
        )
    for of, style in (("raw_pixels", ":"), ("untrained", "--"), ("trained", "-")):
        accuracy = tables.headline(summary, of)
        if accuracy is not None:
            label = f"{of.replace('_', ' ')}, {tables.split(summary)}, k=10"
            axes.axhline(100 * accuracy, color=INK, linewidth=0.9, linestyle=style, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _views_grid(parts: build.Parts) -> Any:
    """A few training images, each beside views of it: what the encoder was shown."""
    n = min(GRID_IMAGES, len(parts.images))
    chosen = torch.linspace(0, len(parts.images) - 1, n).long()
    images = parts.images[chosen].cpu()
    per_draw = len(parts.views.view_sizes)
    views: list[Tensor] = []
    for step in range(-(-GRID_VIEWS // per_draw)):
        views += parts.views(images, parts.views.draw(0, step, n))
    mean, std = torch.tensor(parts.mean).view(-1, 1, 1), torch.tensor(parts.std).view(-1, 1, 1)
    shown = [images.float() / 255] + [view * std + mean for view in views[:GRID_VIEWS]]
    figure = _figure(0.85 * len(shown), 0.85 * n)
    for row in range(n):
        for column, batch in enumerate(shown):
            axes = figure.add_subplot(n, len(shown), row * len(shown) + column + 1)
            axes.imshow(
                batch[row].clamp(0, 1).permute(1, 2, 0).squeeze().numpy(),
                cmap="gray",
                vmin=0,
                vmax=1,
                interpolation="nearest",
            )
            axes.set_axis_off()
            if row == 0:
                axes.set_title("image" if column == 0 else f"view {column}", fontsize=8, color=INK)
    return figure


def _picture(figure: Any) -> str:
    """A figure as a data URI, so that the report is one file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
