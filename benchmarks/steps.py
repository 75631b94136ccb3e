"""Training steps beside their peers: views per second, peak memory, and the share of this machine's convolution peak.

    python benchmarks/steps.py [--json FILE] [--nets resnet18,thin32] [--small]

All train the same net, the others made of torch's own operations, with the second seed's head, loss, views and SGD on made images of
CIFAR-10's shape that lie in memory:

- ours: `train.fit` with recipe=simclr_cifar10, as `twoviews pretrain` runs it;
- the best plain loop that we could write by hand: bfloat16 autocast where the processor multiplies it, channels_last, one forward for
  both views, uint8 tensors in memory, SGD with foreach, and kornia's views of a whole batch: eager, compiled, or compiled with one order
  of the jitter for all (its documentation's advice, though another augmentation), whichever is the fastest here;
- the second seed's way: float32, contiguous, two forwards, torchvision on PIL images in a DataLoader with a worker a core;
- lightly's parts (SimCLRTransform, SimCLRProjectionHead, NTXentLoss) in the loop of its documentation. MoCo v2 (queue 4,096, each view
  once) against its MoCo parts, with one BatchNorm for the batch as there and, as our recipe has it, in eight parts.

Each way has a process of its own, with a thread a core, and they take turns, so that a drift of the machine hits all alike. A turn's
first step is not counted, nor, where steps are short, those whose batches were prefetched meanwhile. Ours and the plain loop have the C
library keep what they free (`memory.keep_freed_memory`), ours alone keeps places of large tensors too (`keep_places`), the others are as
they are documented; the peak memory is that of the main process.
The convolution peak is that of 3x3 ones, forward and backward, in the precision of ours, at the best of ResNet-18's four shapes: the
better of one before and one after each net's turns.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import peak_gib, times
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from views import GRAY, JITTER, SCALE, second_seed_transform

from twoviews import backbones, build, config, device, memory, native, runs, train
from twoviews.data import READERS
from twoviews.data.arrays import Arrays
from twoviews.heads import mlp
from twoviews.losses import nt_xent

IMAGES, EPOCH, WORKERS, RATE = 4096, 50_000, device.cores(), 0.03
PREFETCHED = 2 * WORKERS  # batches that a DataLoader has ready before the first step ends
# net: (batch, turns, counted steps of a turn), and whether MoCo v2 is measured with it too
NETS = {
    "resnet18": (128, 3, 2),
    "thin16": (256, 3, 10),
    "thin32": (256, 3, 10),
    "resnet34": (64, 1, 1),
    "resnet50": (64, 1, 1),
}
MOCO = ("resnet18", "thin32")
MEMORY = ("resnet18", 512)  # whose peak memory is looked at


def made_images(count: int = IMAGES) -> Tensor:
    """(N, 3, 32, 32) uint8: blocks of colour, which views and nets take as long for as pictures."""
    blocks = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)


class Pictures(Dataset):
    """PIL images under a transform that gives both views, taken again and again until an epoch is as long as CIFAR-10's."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Any]) -> None:
        self.pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.pictures[i % len(self.pictures)])


class Twice:
    """Two views by one transform; not a lambda, which a worker that is spawned cannot be sent."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, picture: Any) -> tuple[Any, Any]:
        return self.transform(picture), self.transform(picture)


def forever(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def net_and_head(net: str, width: int = 1024) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    backbone, embed_dim = backbones.build(net, in_channels=3, image_size=32)
    return backbone, mlp([embed_dim, width, 128], hidden_bn=False, output_bn=False)


def sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, RATE, momentum=0.9, weight_decay=5e-4, foreach=True)


MOCO_V2 = ["recipe=moco", "queue_size=4096", "temperature=0.1", "ema_decay=0.99", "crop_scale=[0.2,1.0]"]
RECIPES = {"simclr": ["recipe=simclr_cifar10"], "moco": [*MOCO_V2, "bn_splits=1"], "moco in parts": [*MOCO_V2, "bn_splits=8"]}


def parts_of_ours(net: str, batch: int, method: str, where: str = "cpu", count: int = IMAGES) -> tuple[config.Config, build.Parts]:
    """What a run of ours is built of, on made images."""
    images = made_images(count).numpy()
    labels = np.arange(count) % 10
    READERS["cifar10"] = lambda _: Arrays("made", images, labels, images[:100], labels[:100], tuple("0123456789"))
    words = [*RECIPES[method], f"backbone={net}", f"batch_size={batch}", f"device={where}", "probe_every=0", "checkpoint_every=1000"]
    cfg = config.load("pretrain", [*words, "dataset=cifar10", "epochs=1000"])
    return cfg, build.build(cfg)


def turns_of_ours(cfg: config.Config, parts: build.Parts, scratch: Path) -> Callable[[int], float]:
    """Turns of the real loop: seconds a step, by its own clock, which leaves the first one out."""

    def turn(steps: int) -> float:
        cfg["max_steps"] = steps + 1
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        path = runs.create(scratch, "bench", "{}")
        with quiet[0], quiet[1], runs.RunFolder(path) as folder:
            _, summary = train.fit(cfg, parts, folder)
        shutil.rmtree(path)
        return 2 * cfg.batch_size / float(summary["views_per_s"])

    return turn


def kornia_views(batch: int) -> Callable[[Tensor], Tensor]:
    """The fastest of its ways on this machine, after each has had the calls that it needs to settle."""
    import kornia.augmentation as K

    def pipeline(**jitter: Any) -> nn.Module:
        return K.AugmentationSequential(
            K.RandomResizedCrop((32, 32), scale=SCALE),
            K.RandomHorizontalFlip(p=0.5),
            K.ColorJitter(*JITTER, p=0.8, **jitter),
            K.RandomGrayscale(p=GRAY),
            data_keys=["input"],
        )

    ways: dict[str, Callable[[Tensor], Tensor]] = {"eager": pipeline()}
    if device.compiler():
        ways |= {"compiled": torch.compile(pipeline()), "compiled, one order": torch.compile(pipeline(order=(0, 1, 2, 3)))}
    x, seconds = torch.rand(2 * batch, 3, 32, 32), {}
    for name, way in ways.items():
        with warnings.catch_warnings(), contextlib.suppress(Exception):  # one that does not compile here is none of its ways
            warnings.simplefilter("ignore")
            for _ in range(6):
                began = time.perf_counter()
                way(x)
                seconds[name] = time.perf_counter() - began
    best = min(seconds, key=lambda name: seconds[name])
    print(f"kornia, {best}: {seconds}", file=sys.stderr)
    return ways[best]


def plain_loop(net: str, batch: int) -> Iterator[None]:
    """The best loop that we could write by hand, a step at a time."""
    images, views = made_images(), kornia_views(batch)
    backbone, head = (module.to(memory_format=torch.channels_last) for module in net_and_head(net))
    optimizer = sgd(backbone, head)
    bf16 = device.has_bf16("cpu")
    while True:
        rows = torch.randint(IMAGES, (batch,))
        x = images[rows].float() / 255
        both = views(torch.cat([x, x])).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            z = head(backbone(both))
        loss = nt_xent(z, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def second_seed(net: str, batch: int) -> Iterator[None]:
    """As its script does it."""
    data = Pictures(made_images(), Twice(second_seed_transform()))
    backbone, head = net_and_head(net)
    optimizer = sgd(backbone, head)
    for one, two in forever(DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=WORKERS)):
        z = torch.cat([head(backbone(one)), head(backbone(two))])
        z = F.normalize(z)
        logits = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
        loss = F.cross_entropy(logits, (torch.arange(2 * batch) + batch) % (2 * batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def lightly_simclr(net: str, batch: int) -> Iterator[None]:
    """lightly's parts in its documented loop."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=32, cj_strength=0.5, min_scale=SCALE[0], gaussian_blur=0.0, normalize=None)
    data = Pictures(made_images(), transform)
    backbone, _ = net_and_head(net)
    head = SimCLRProjectionHead(_width(backbone), 1024, 128, batch_norm=False)
    criterion, optimizer = NTXentLoss(temperature=0.5), sgd(backbone, head)
    for one, two in forever(DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=WORKERS)):
        loss = criterion(head(backbone(one).flatten(1)), head(backbone(two).flatten(1)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def lightly_moco(net: str, batch: int) -> Iterator[None]:
    """The same of MoCo: momentum copies, and the queue in its loss."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform

    transform = MoCoV2Transform(input_size=32, cj_strength=1.0, cj_hue=0.1, gaussian_blur=0.0, normalize=None)
    data = Pictures(made_images(), transform)
    backbone, _ = net_and_head(net)
    head = MoCoProjectionHead(_width(backbone), 512, 128)
    slow_backbone, slow_head = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(slow_backbone)
    deactivate_requires_grad(slow_head)
    criterion, optimizer = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128)), sgd(backbone, head)
    for query, key in forever(DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=WORKERS)):
        update_momentum(backbone, slow_backbone, m=0.99)
        update_momentum(head, slow_head, m=0.99)
        q = head(backbone(query).flatten(1))
        with torch.no_grad():
            k = slow_head(slow_backbone(key).flatten(1))
        loss = criterion(q, k)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def _width(backbone: nn.Module) -> int:
    was = backbone.training
    with torch.no_grad():
        width = backbone.eval()(torch.zeros(1, 3, 32, 32)).shape[1]
    backbone.train(was)
    return width


WAYS: dict[str, Callable[[str, int], Iterator[None]]] = {
    "plain loop": plain_loop,
    "second seed's way": second_seed,
    "lightly": lightly_simclr,
    "lightly, MoCo": lightly_moco,
}
OURS = {"TwoViews": "simclr", "TwoViews, MoCo v2": "moco", "TwoViews, MoCo v2 in parts": "moco in parts"}


def serve(way: str, net: str, batch: int) -> None:
    """In a child: for every number of steps on stdin the seconds a step of one turn, and the peak memory so far, on stdout."""
    torch.manual_seed(0)
    torch.set_num_threads(WORKERS)  # all alike, as ours asks for
    if way == "plain loop":  # the best by hand has it; the seed and lightly are as they are documented; ours asks for it itself
        memory.keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        ours = turns_of_ours(*parts_of_ours(net, batch, OURS[way]), Path(scratch)) if way in OURS else None
        loop = None if ours else WAYS[way](net, batch)
        print("ready", flush=True)
        for line in sys.stdin:
            steps = int(line)
            if ours is not None:
                seconds = ours(steps)
            else:
                loop = loop or WAYS[way](net, batch)
                # workers start and kernels are chosen; where steps are short, what was prefetched meanwhile is used up too
                for _ in range(1 + (PREFETCHED if steps > 5 else 0)):
                    next(loop)
                began = time.perf_counter()
                for _ in range(steps):
                    next(loop)
                seconds = (time.perf_counter() - began) / steps
                if way != "plain loop":
                    loop.close()  # ends its workers: between turns they would fill their queues
                    loop = None
            print(json.dumps({"seconds": seconds, "GiB": peak_gib()}), flush=True)


def measure(ways: list[str], net: str, batch: int, turns: int, steps: int) -> dict[str, dict[str, Any]]:
    """Each way's seconds a step, turn by turn, and its peak memory."""
    found: dict[str, dict[str, Any]] = {way: {"seconds": [], "GiB": 0.0} for way in ways}
    with contextlib.ExitStack() as stack:
        said = {way: stack.enter_context(tempfile.TemporaryFile("w+")) for way in ways}  # the compiler's remarks, unless it fails
        children = {}
        for way in ways:
            words = [sys.executable, __file__, "--one", way, net, str(batch)]
            children[way] = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said[way], text=True)
            stack.callback(children[way].kill)
            _answer(children[way], None)  # one after another, so that no turn runs beside another's imports
        for _ in range(turns):
            for way, child in children.items():
                answer = _answer(child, steps) if "failed" not in found[way] else ""
                if answer:
                    found[way]["seconds"].append(json.loads(answer)["seconds"])
                    found[way]["GiB"] = json.loads(answer)["GiB"]
                elif "failed" not in found[way]:
                    said[way].seek(0)
                    found[way]["failed"] = " ".join(said[way].read().split())[-300:] or f"ended with {child.wait()}"
    return found


def _answer(child: subprocess.Popen[str], steps: int | None) -> str:
    """What a child answers, asked for some steps, or that it is ready; empty where it has ended."""
    if child.stdin is None or child.stdout is None:
        raise RuntimeError("a child without pipes")
    with contextlib.suppress(BrokenPipeError):
        if steps is not None:
            child.stdin.write(f"{steps}\n")
            child.stdin.flush()
    while (line := child.stdout.readline()) and not line.startswith(("ready", "{")):
        pass  # a library that compiles says so
    return line


def convolution_peak(precision: str) -> float:
    """GFLOP/s of 3x3 convolutions, forward and backward, channels_last: the best of ResNet-18's shapes."""
    memory.keep_freed_memory()
    best = 0.0
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for channels, side in ((64, 32), (128, 16), (256, 8), (512, 4)):
        x = torch.randn(256, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(channels, channels, 3, 3, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
        grad = torch.randn_like(x)
        seconds = []
        for _ in range(6):
            began = time.perf_counter()
            torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), grad)
            seconds.append(time.perf_counter() - began)
        best = max(best, 3 * 2 * 256 * side**2 * channels**2 * 9 / min(seconds) / 1e9)
    return best


def gflop_a_view(net: str) -> float:
    """Of a training step: forward, and twice that backward, less the first layer's gradient of its input."""
    from torch.utils.flop_counter import FlopCounterMode

    backbone, head = net_and_head(net)
    with FlopCounterMode(display=False) as counter:
        head(backbone(torch.randn(8, 3, 32, 32))).sum().backward()
    return counter.get_total_flops() / 8 / 1e9


def views_share(batch: int) -> float:
    """Seconds that the views of a step take, on all threads, as a run makes them."""
    cfg = config.load("pretrain", ["recipe=simclr_cifar10", "device=cpu", "dataset=fashion_mini"])
    images = made_images()
    machine = device.choose(device="cpu", threads=None, precision="auto", compile="auto")
    cfg_views = build.build_views(cfg, _Shape(images))  # type: ignore[arg-type]
    make = build.views_on(machine, cfg_views)
    seconds = []
    for step in range(12):
        began = time.perf_counter()
        make(images[:batch], cfg_views.draw(0, step, batch))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


class _Shape:
    """What `build_views` asks of a data set."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.mean, self.std = images, (0.5,) * 3, (0.25,) * 3


def main() -> int:
    """Print Markdown tables; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--nets", default=",".join(NETS), help="which nets")
    parser.add_argument("--small", action="store_true", help="one turn of two steps, batch 32: a trial")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "NET", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, net, batch = arguments.one
        serve(way, net, int(batch))
        return 0
    torch.set_num_threads(WORKERS)
    precision = "bf16" if device.has_bf16("cpu") else "fp32"
    versions = f"torch {torch.__version__}, torchvision {version('torchvision')}, Pillow {version('pillow')}, "
    versions += f"kornia {version('kornia')}, lightly {version('lightly')}"
    print(f"{device.cpu_name()}, {torch.get_num_threads()} threads; {versions}; ours in {precision}, views in ", end="")
    print(f"{'C++' if native.library() is not None else 'torch'}\n")
    figures: dict[str, Any] = {"cpu": device.cpu_name(), "versions": versions}
    print("| net, batch | way | views/s | min-max | ours is faster by | share of the peak | GiB |\n|:--|:--|--:|--:|--:|--:|--:|")
    for net in arguments.nets.split(","):
        batch, turns, steps = (32, 1, 2) if arguments.small else NETS[net]
        ways = ["TwoViews", "plain loop", "second seed's way", "lightly"]
        ways += ["TwoViews, MoCo v2", "TwoViews, MoCo v2 in parts", "lightly, MoCo"] * (net in MOCO)
        peak = convolution_peak(precision)
        found = measure(ways, net, batch, turns, steps)
        peak = max(peak, convolution_peak(precision))  # the machine drifts: the better of before and after
        flops = gflop_a_view(net)
        for way, one in found.items():
            if "failed" in one:
                print(f"| {net}, {batch} x 2 | {way} | failed: {one['failed'][-80:]} | | | | |", flush=True)
                continue
            rates = sorted(2 * batch / seconds for seconds in one["seconds"])
            mine = found["TwoViews, MoCo v2" if "MoCo" in way else "TwoViews"]
            # turn by turn, since the machine drifts by more than some differences: each is set against ours of the same moment
            one["faster"] = times(one["seconds"], mine["seconds"]) if "failed" not in mine else math.nan
            one["share"] = flops * statistics.median(rates) / peak
            share = "" if "MoCo" in way else f"{one['share']:.0%}"
            spread = f"{statistics.median(rates):,.0f} | {rates[0]:,.0f}-{rates[-1]:,.0f}"
            print(f"| {net}, {batch} x 2 | {way} | {spread} | {one['faster']:.2f} x | {share} | {one['GiB']:.1f} |", flush=True)
        views = views_share(batch)
        of = "" if "failed" in found["TwoViews"] else f"{views / statistics.median(found['TwoViews']['seconds']):.1%} of ours"
        print(f"| | views of a step | | | {of} | {peak:.0f} GFLOP/s | |", flush=True)
        figures[net] = {"batch": batch, "gflop_a_view": flops, "peak_gflops": peak, "views_s": views, "ways": found}
        if arguments.json:  # now: what comes may fail
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    net, batch = MEMORY
    if not arguments.small and net in arguments.nets.split(","):
        found = measure(["TwoViews", "second seed's way"], net, batch, 1, 1)
        ours, theirs = (one["GiB"] for one in found.values())
        said = f"{ours:.2f} GiB; the second seed's way {theirs:.2f} GiB: ours is {ours / (theirs or math.nan):.2f} of it"
        print(f"\npeak memory of {net}, {batch} x 2: {said}")
        figures["memory"] = found
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
