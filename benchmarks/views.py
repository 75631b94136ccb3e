"""Views per second on one core: TwoViews beside torchvision, kornia and lightly, in one run.

    python benchmarks/views.py [--json FILE] [--small]

Settings are those of dkobak/simclr-cifar10: RandomResizedCrop to 32 x 32 (scale 0.2-1), flip, ColorJitter 0.4/0.4/0.4/0.1 with
p 0.8, grayscale 0.2. Every contender starts from images in memory and returns float tensors.

- torchvision (v1) and lightly's SimCLRTransform take PIL images one by one, as in a DataLoader's worker;
- torchvision v2 takes uint8 tensors one by one, because it draws one set of parameters per call;
- kornia and TwoViews take a batch of uint8 tensors.

Each runs in the best form that its documentation names. kornia runs as it is, under torch.compile, and under torch.compile with one
order of the jitter for all images. TwoViews runs in C++ (as in a run on a CPU), under torch.compile, and as it is. One thread each;
the contenders run in turns, and the median counts.
"""

from __future__ import annotations

import platform
import statistics
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version

import torch
import torchvision
from measure import in_turn, parser, save
from peers import GRAY, JITTER, SCALE, dkobak_transform, kornia_pipeline, lightly_transform, to_pil
from torch import Tensor, nn

from twoviews.cpu import views as cpu_views
from twoviews.device import compiler, cpu_name
from twoviews.views import Views, ViewSpec

BATCH, TURNS = 512, 7


def pil(images: Tensor) -> Callable[[], object]:
    """Return dkobak's way: torchvision's transforms on each PIL image."""
    transform, pictures = dkobak_transform(), to_pil(images)
    return lambda: torch.stack([transform(picture) for picture in pictures])


def v2(images: Tensor) -> Callable[[], object]:
    """Return torchvision's newer transforms, on the tensor of each image."""
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


def lightly(images: Tensor) -> Callable[[], object]:
    """Return lightly's transform, which makes both views of a PIL image, on half of the images."""
    transform, pictures = lightly_transform(), to_pil(images[: len(images) // 2])
    return lambda: torch.stack([view for picture in pictures for view in transform(picture)])


def kornia(images: Tensor, pipeline: nn.Module | Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """Return kornia's augmentations of the batch."""
    return lambda: pipeline(images.float() / 255)


def ours(images: Tensor, form: str) -> Callable[[], object]:
    """Return one view of every image, drawing the random numbers included."""
    spec = ViewSpec(
        size=32,
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
    )
    views = Views(image_shape=(3, 32, 32), specs=[spec], mean=(0.0,) * 3, std=(1.0,) * 3)
    make: Callable[[Tensor, Tensor], list[Tensor]] = views
    if form != "eager":
        make = cpu_views.maker(views) if form == "C++" else torch.compile(views.__call__, dynamic=False)
    step = iter(range(10**9))
    return lambda: make(images, views.draw(0, next(step), len(images)))


def contenders(images: Tensor) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Return what runs on this machine, by name, and the error of what does not."""
    run: dict[str, Callable[[], object]] = {
        "torchvision, PIL": pil(images),
        "torchvision v2, tensors": v2(images),
        "lightly, PIL": lightly(images),
        "kornia, eager": kornia(images, kornia_pipeline()),
    }
    failed: dict[str, str] = {}
    if compiler():
        warnings.simplefilter("ignore")
        one_order = {"order": (0, 1, 2, 3)}  # the advice of kornia's documentation for torch.compile
        for name, jitter in (("kornia, compiled", {}), ("kornia, compiled, one order: another augmentation", one_order)):
            try:
                compiled = kornia(images, torch.compile(kornia_pipeline(**jitter)))
                compiled()
                run[name] = compiled
            except Exception as error:  # a peer that does not compile is reported; its eager form stays in the table
                failed[name] = type(error).__name__
        run["TwoViews, compiled"] = ours(images, "compiled")
    if cpu_views.library() is not None:
        run["TwoViews, C++"] = ours(images, "C++")
    run["TwoViews, eager"] = ours(images, "eager")
    return run, failed


def main() -> int:
    """Print a Markdown table; write JSON if asked."""
    arguments = parser(__doc__, "one turn").parse_args()
    turns = 1 if arguments.small else TURNS
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, 8, 8), dtype=torch.uint8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    run, failed = contenders(images)
    for warm_up in run.values():
        warm_up()
    times = {name: [1e6 / BATCH * s for s in seconds] for name, seconds in in_turn(run, turns)[0].items()}
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(value for name, value in medians.items() if name.startswith("TwoViews"))
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, kornia {version('kornia')}, lightly {version('lightly')}"
    versions += f", Python {platform.python_version()}"
    print(f"{cpu_name()}, one thread; {versions}; batch {BATCH}, median of {turns} turns\n")
    print("| views | us per view | min-max | TwoViews is faster by |\n|:--|--:|--:|--:|")
    for name, value in medians.items():
        print(f"| {name} | {value:.1f} | {min(times[name]):.1f}-{max(times[name]):.1f} | {value / best:.1f} x |")
    for name, error in failed.items():
        print(f"| {name} | does not run: {error} | | |")
    save(arguments.json, {"cpu": cpu_name(), "versions": versions, "us_per_view": times, "failed": failed})
    return 0


if __name__ == "__main__":
    sys.exit(main())
