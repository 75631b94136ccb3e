"""Views per second on one core: ours beside torchvision, kornia and lightly, interleaved, with the second seed's settings.

    python benchmarks/views.py [--json FILE]

Settings: RandomResizedCrop to 32 x 32 (scale 0.2-1), flip, ColorJitter 0.4/0.4/0.4/0.1 with p 0.8, grayscale 0.2. All start from
images in memory and end in float tensors. torchvision (v1) and lightly's SimCLRTransform work on PIL images one by one, as in a
DataLoader's worker, torchvision v2 on uint8 tensors one by one, because it draws one set of numbers a call; kornia and we work on a batch
of uint8 tensors. Every peer uses its own documented best settings: kornia is tried as it is, under torch.compile, and so with one order of
the jitter for all images; ours as the runs use it on a CPU (C++), under torch.compile, and eager. One thread each; the median of
interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torchvision
from measure import in_turn
from PIL import Image
from torchvision import transforms

from twoviews import native
from twoviews.device import compiler, cpu_name
from twoviews.views import Views

BATCH, ROUNDS = 512, 7
SCALE, JITTER, GRAY = (0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.2


def second_seed_transform() -> transforms.Compose:
    """One view of a PIL image."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=SCALE),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(*JITTER)], p=0.8),
            transforms.RandomGrayscale(GRAY),
            transforms.ToTensor(),
        ]
    )


def pil(images: torch.Tensor) -> Callable[[], object]:
    """The second seed's way: torchvision's transforms on each PIL image."""
    transform = second_seed_transform()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    return lambda: torch.stack([transform(picture) for picture in pictures])


def v2(images: torch.Tensor) -> Callable[[], object]:
    """torchvision's newer transforms, on the tensor of each image."""
    from torchvision.transforms import v2 as t

    transform = t.Compose(
        [
            t.RandomResizedCrop(32, scale=SCALE),
            t.RandomHorizontalFlip(),
            t.RandomApply([t.ColorJitter(*JITTER)], p=0.8),
            t.RandomGrayscale(GRAY),
            t.ToDtype(torch.float32, scale=True),
        ]
    )
    return lambda: torch.stack([transform(image) for image in images])


def lightly(images: torch.Tensor) -> Callable[[], object]:
    """lightly's transform, which makes both views of a PIL image, on half of the images."""
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=32, cj_strength=0.5, min_scale=SCALE[0], gaussian_blur=0.0, normalize=None)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images[: len(images) // 2]]
    return lambda: torch.stack([view for picture in pictures for view in transform(picture)])


def kornia(images: torch.Tensor, compiled: bool, **jitter: object) -> Callable[[], object]:
    """kornia's batched augmentations, parameters per image."""
    import kornia.augmentation as K

    pipeline = K.AugmentationSequential(
        K.RandomResizedCrop((32, 32), scale=SCALE),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(*JITTER, p=0.8, **jitter),
        K.RandomGrayscale(p=GRAY),
        data_keys=["input"],
    )
    run = torch.compile(pipeline) if compiled else pipeline
    return lambda: run(images.float() / 255)


def ours(images: torch.Tensor, by: str) -> Callable[[], object]:
    """One view of every image; the numbers are drawn too."""
    views = Views(
        image_shape=(3, 32, 32),
        view_sizes=[32],
        crop_scale=SCALE,
        crop_ratio=(3 / 4, 4 / 3),
        interpolation="bilinear",
        flip_p=0.5,
        jitter_p=0.8,
        brightness=JITTER[0],
        contrast=JITTER[1],
        saturation=JITTER[2],
        hue=JITTER[3],
        grayscale_p=GRAY,
        blur_p=0.0,
        blur_kernel=3,
        blur_sigma=(0.1, 2.0),
        solarize_p=0.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    run = {"C++": views.on_cpu, "compiled": torch.compile(views.__call__, dynamic=False), "eager": views}[by]
    step = iter(range(10**9))
    return lambda: run(images, views.draw(0, next(step), len(images)))


def main() -> int:
    """Print a Markdown table; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--small", action="store_true", help="one round: a trial")
    arguments = parser.parse_args()
    rounds = 1 if arguments.small else ROUNDS
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, 8, 8), dtype=torch.uint8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    rivals: dict[str, Callable[[], object]] = {
        "torchvision, PIL": pil(images),
        "torchvision v2, tensors": v2(images),
        "lightly, PIL": lightly(images),
        "kornia, eager": kornia(images, False),
    }
    failed = {}
    if compiler():
        warnings.simplefilter("ignore")
        fixed = {"order": (0, 1, 2, 3)}  # its documentation's advice for the compiler
        for name, jitter in (("kornia, compiled", {}), ("kornia, compiled, one order: another augmentation", fixed)):
            try:
                compiled = kornia(images, True, **jitter)
                compiled()
                rivals[name] = compiled
            except Exception as error:  # a peer that cannot be compiled is reported, and stays in the table as it is
                failed[name] = f"{type(error).__name__}"
        rivals["TwoViews, compiled"] = ours(images, "compiled")
        rivals["TwoViews, compiled"]()
    if native.library() is not None:
        rivals["TwoViews, C++"] = ours(images, "C++")
    rivals["TwoViews, eager"] = ours(images, "eager")
    for run in rivals.values():
        run()  # warms up
    times = {name: [1e6 / BATCH * s for s in seconds] for name, seconds in in_turn(rivals, rounds)[0].items()}
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(value for name, value in medians.items() if name.startswith("TwoViews"))
    import kornia as peer

    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, kornia {peer.__version__}, lightly {version('lightly')}"
    versions += f", Python {platform.python_version()}"
    print(f"{cpu_name()}, one thread; {versions}; batch {BATCH}, median of {rounds} interleaved rounds\n")
    print("| views | us a view | min-max | TwoViews is faster by |\n|:--|--:|--:|--:|")
    for name, value in medians.items():
        print(f"| {name} | {value:.1f} | {min(times[name]):.1f}-{max(times[name]):.1f} | {value / best:.1f} x |")
    for name, why in failed.items():
        print(f"| {name} | does not run: {why} | | |")
    if arguments.json:
        figures = {"cpu": cpu_name(), "versions": versions, "us_per_view": times, "failed": failed}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
