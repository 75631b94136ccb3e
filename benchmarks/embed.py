"""Features of a folder of JPEGs: `Embedder` beside its two parts alone, decoding every file and then the forward passes.

    python benchmarks/embed.py [--json FILE] [--small] [--data-dir FOLDER]

- The folder: 10,000 files of `--data-dir`, or the bundled blood cells, enlarged to 128 x 128 pixels.
- Decoding alone: one thread per processor, to the size of the backbone. Forward passes alone: the same batches as in `Embedder`.
- The backbone: the bundled thin32, in fp32.

The parts and the whole run in turns; seconds are the median of the turns, with the smallest and the largest.
"""

from __future__ import annotations

import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measure import in_turn, median_and_range, parser, save, times
from PIL import Image

from twoviews import Embedder, load_backbone
from twoviews.data import READERS
from twoviews.device import cpu_name
from twoviews.images.inputs import inputs
from twoviews.images.pixels import Decoded, Reading, decode

MODEL = "simclr-blood_cells-thin32"
FILES, SMALL, SIDE, TURNS, BATCH = 10_000, 300, 128, 3, 256


def write_jpegs(folder: Path, count: int) -> None:
    """Write the bundled images as JPEG files of 128 x 128 pixels."""
    images = READERS["blood_cells"](None).train_images[:count].transpose(0, 2, 3, 1)
    for i, image in enumerate(images):
        Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{i:05}.jpg", quality=90)


def decode_all(paths: list[Path], reading: Reading) -> torch.Tensor:
    """Return all images (N, 3, H, W) uint8.

    Raises:
        ValueError: if a file is bad.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = list(pool.map(lambda path: decode(path, reading), paths))
    images = [one.pixels for one in decoded if isinstance(one, Decoded)]
    if len(images) < len(paths):
        raise ValueError(f"{len(paths) - len(images)} of {len(paths)} files are bad")
    return torch.from_numpy(np.stack(images))


@torch.no_grad()
def forward_all(module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the features of all images."""
    mean, std = module.get_buffer("mean"), module.get_buffer("std")
    batches = ((batch / 255 - mean) / std for batch in images.split(BATCH))
    return torch.cat([module(batch.contiguous(memory_format=torch.channels_last)) for batch in batches])


def main() -> int:
    """Print a Markdown table; write JSON if asked."""
    options = parser(__doc__, f"{SMALL} files and one turn")
    options.add_argument("--data-dir", metavar="FOLDER", help="a folder of JPEG files")
    arguments = options.parse_args()
    module = load_backbone(MODEL).to(memory_format=torch.channels_last)
    reading = Reading(32)
    with tempfile.TemporaryDirectory() as scratch:
        if not arguments.data_dir:
            write_jpegs(Path(scratch), SMALL if arguments.small else FILES)
        paths = list(inputs(arguments.data_dir or scratch, reading).items)[: SMALL if arguments.small else FILES]
        images = decode_all(paths, reading)
        embedder = Embedder(MODEL, device="cpu")
        seconds, results = in_turn(
            {
                "decoding alone": lambda: decode_all(paths, reading),
                "forward passes alone": lambda: forward_all(module, images),
                "Embedder": lambda: embedder.transform(paths),
            },
            1 if arguments.small else TURNS,
        )
    both = [sum(pair) for pair in zip(seconds["decoding alone"], seconds["forward passes alone"], strict=True)]
    difference = float(np.abs(results["Embedder"] - results["forward passes alone"].numpy()).max())
    relative = times(both, seconds["Embedder"])
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}; {len(paths)} files, thin32, fp32\n")
    print("| | seconds | images/s |\n|:--|--:|--:|")
    for name, values in (*seconds.items(), ("the two parts, one after the other", both)):
        print(f"| {name} | {median_and_range(values)} | {len(paths) / median(values):,.0f} |")
    print(f"\nEmbedder makes {relative:.2f} times the images/s of its two parts; largest difference of a feature: {difference:.1e}")
    save(arguments.json, {"cpu": cpu_name(), "files": len(paths), "seconds": seconds, "relative": relative, "difference": difference})
    return 0


if __name__ == "__main__":
    sys.exit(main())
