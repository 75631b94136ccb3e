"""`neighbours.png`, drawn with matplotlib."""

import io
from typing import Any

from torch import Tensor

from twoviews.data.dataset import Dataset

INK, WRONG = "#1f2328", "#d1242f"


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


def neighbours_grid(found: dict[str, Any], data: Dataset) -> Any:
    """Draw some images, each beside its nearest training images by raw pixels and by the trained encoder.

    Args:
        found: from `inspection.neighbours`.
        data: whose images they are. With several classes, neighbours of another class have a frame and a cross.
    """
    images, labels = data.split(found["split"])
    several, nearest = len(data.classes) > 1, max(5, len(found["trained"][0]))  # room for the words above
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
