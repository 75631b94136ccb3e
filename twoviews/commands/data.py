"""`twoviews data`: say what would be trained on, and draw some images of each class."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, PngImagePlugin

from twoviews import inputs
from twoviews.config import Config
from twoviews.data.dataset import Dataset
from twoviews.data.describe import pairs
from twoviews.data.duplicates import NEAR, near_images
from twoviews.images.names import shown
from twoviews.runs.files import write_atomic

SHEET = "images.png"  # default file
MARK = "TwoViews contact sheet"  # in the file's metadata: only such files are overwritten
ROWS, COLUMNS = 40, 8  # classes of the table and the sheet; images of a class
TILE, GAP, TEXT = 64, 4, 180  # pixels: an image, the space between two, and the column of names


def run(cfg: Config) -> int:
    """Print what was read and how many images each class has, and write the contact sheet."""
    to = Path(cfg.to or SHEET)
    _check_file(to)
    if cfg.dataset != "folder" and "image_size" not in cfg.given:  # the default size is for folders
        cfg = Config({**cfg, "image_size": None})
    data = inputs.load_data(cfg)
    print("\n".join(data.description))
    if cfg.duplicates:
        print("\n".join(f"  {line}" for line in _near(data)))
    print(f"\n{_table(data)}")
    count = _write_sheet(data, to)
    print(f"\n{to}: {COLUMNS} images of each of {count} classes" if count > 1 else f"\n{to}: {COLUMNS} images")
    return 0


def _check_file(to: Path) -> None:
    """Refuse to overwrite what is not a contact sheet."""
    if to.suffix.lower() != ".png":
        raise ValueError(f"to={shown(to)}: expected a file that ends in .png")
    if not to.parent.is_dir():
        raise ValueError(f"to={shown(to)}: there is no folder {shown(to.parent)}: create it first")
    if not to.exists():
        return
    try:
        with Image.open(to, formats=("PNG",)) as image:
            ours = image.info.get("Software") == MARK
    except OSError:
        ours = False
    if not ours:
        raise ValueError(f"to={shown(to)}: exists and is not a contact sheet of twoviews data: choose another file with to=")


def _near(data: Dataset) -> list[str]:
    """Return lines about images that are nearly equal: between the splits, in train of different classes, and of one class."""
    images, _ = data.training("train+val", labelled=False)
    unlabelled = tuple(f"unlabelled image {row}" for row in range(len(images) - len(data.images)))
    train, test = (data.names + unlabelled if data.names else (), "train"), (data.test_names, "test")
    between = near_images(data.test_images, images)
    across = near_images(data.images, data.images, data.labels)
    within = [(i, j) for i, j in near_images(data.images, data.images, torch.arange(len(data.images))) if data.labels[i] == data.labels[j]]
    above = f"(correlation above {NEAR})"
    return [
        f"test images nearly equal to one that is trained on {above}: {len(between)}"
        + (f" ({pairs(between, test, train)})" if between else ""),
        f"training images nearly equal to one of another class {above}: {len(across)}"
        + (f" ({pairs(across, train, train)})" if across else ""),
        f"training images nearly equal to an earlier one of their class {above}: {len(within)}"
        + (f" ({pairs(within, train, train)})" if within else ""),
    ]


def _table(data: Dataset) -> str:
    """Return the number of images of each class in each split."""
    counts = [torch.bincount(labels, minlength=len(data.classes)).tolist() for labels in (data.labels, data.test_labels)]
    names = [shown(name) for name in data.classes]
    width = max(map(len, ("class", *names[:ROWS])))
    lines = [f"{'class':<{width}} {'train':>9} {'test':>9}"]
    lines += [f"{name:<{width}} {train:>9,} {test:>9,}" for name, train, test in zip(names[:ROWS], *counts, strict=False)]
    return "\n".join(lines + [f"and {len(names) - ROWS} more classes"] * (len(names) > ROWS))


def _write_sheet(data: Dataset, to: Path) -> int:
    """Write images of the first classes, and of those without labels, and return the number of classes."""
    rows = [(name, _some(data.images[data.labels == label])) for label, name in enumerate(data.classes[:ROWS])]
    if len(data.unlabelled_images):
        rows.append(("without labels", _some(data.unlabelled_images)))
    sheet = Image.new("RGB", (TEXT + COLUMNS * (TILE + GAP), len(rows) * (TILE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, images) in enumerate(rows):
        top = GAP + i * (TILE + GAP)
        text = name.encode("ascii", "backslashreplace").decode()  # the built-in font has few other characters
        draw.text((GAP, top + TILE // 2 - 6), text if len(text) <= 26 else f"{text[:23]}...", fill="black")
        for column, image in enumerate(images):
            sheet.paste(image, (TEXT + column * (TILE + GAP), top))
    note, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    note.add_text("Software", MARK)
    sheet.save(buffer, "PNG", pnginfo=note)
    write_atomic(to, buffer.getvalue())
    return len(data.classes[:ROWS])


def _some(images: torch.Tensor) -> Sequence[Image.Image]:
    """Return at most `COLUMNS` images of (n, C, H, W), spread over all."""
    chosen = images[torch.linspace(0, len(images) - 1, min(COLUMNS, len(images))).long()].numpy()
    pictures = [Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))) for image in chosen]
    return [picture.convert("RGB").resize((TILE, TILE), Image.Resampling.BILINEAR) for picture in pictures]
