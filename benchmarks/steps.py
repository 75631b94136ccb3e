"""Training steps beside their peers: views per second, peak memory, and the share of this machine's convolution peak.

    python benchmarks/steps.py [--json FILE] [--nets resnet18,thin32] [--small]

All train the same net with the second seed's head, loss, views and SGD on made images of CIFAR-10's shape that lie in memory:

- ours: `train.fit` with recipe=simclr_cifar10, as `twoviews pretrain` runs it;
- the best plain loop that we could write by hand: bfloat16 autocast where the processor multiplies it, channels_last, one forward for both
  views, uint8 tensors in memory, kornia's views of a whole batch (compiled if that works here), SGD with foreach;
- the second seed's way: float32, contiguous, two forwards, torchvision on PIL images in a DataLoader with a worker a core;
- lightly's parts (SimCLRTransform, SimCLRProjectionHead, NTXentLoss) in the loop of its documentation; MoCo v2 against its MoCo parts.

Each way has a process of its own, and they take turns, so that a drift of the machine hits all alike; a turn's first step is not counted.
The peak is that of 3x3 convolutions, forward and backward, in the precision of ours, at the best of ResNet-18's four shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import resource
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
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from views import GRAY, JITTER, SCALE

from twoviews import backbones, build, config, device, native, runs, train
from twoviews.data import READERS
from twoviews.data.arrays import Arrays
from twoviews.heads import mlp
from twoviews.losses import nt_xent

IMAGES, WORKERS, RATE = 4096, os.cpu_count(), 0.03
# net: (batch, turns, counted steps of a turn), and whether MoCo v2 is measured with it too
NETS = {
    "resnet18": (128, 3, 3),
    "thin16": (256, 3, 20),
    "thin32": (256, 3, 20),
    "resnet34": (128, 1, 1),
    "resnet50": (128, 1, 1),
}
MOCO = ("resnet18", "thin32")
MEMORY = ("resnet18", 512)  # whose peak memory is looked at

Step = Callable[[], object]


def made_images() -> Tensor:
    """(N, 3, 32, 32) uint8: blocks of colour, which views and nets take as long for as pictures."""
    blocks = torch.randint(0, 256, (IMAGES, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)


class Pictures(Dataset):
    """PIL images under a transform that gives both views."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Any]) -> None:
        self.pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.pictures[i])


def forever(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def net_and_head(net: str, width: int = 1024) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    backbone, embed_dim = backbones.build(net, in_channels=3, image_size=32)
    return backbone, mlp([embed_dim, width, 128], hidden_bn=False, output_bn=False)


def sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, RATE, momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=True)


def turns_of_ours(net: str, batch: int, method: str, where: str = "cpu") -> Callable[[int], float]:
    """Turns of the real loop: seconds a step, by its own clock, which leaves the first one out."""
    images = made_images().numpy()
    labels = np.arange(IMAGES) % 10
    READERS["cifar10"] = lambda _: Arrays("made", images, labels, images[:100], labels[:100], tuple("0123456789"))
    recipe = {"simclr": "simclr_cifar10", "moco": "moco_cifar_demo"}[method]
    words = [f"recipe={recipe}", f"backbone={net}", f"batch_size={batch}", f"device={where}", "probe_every=0", "checkpoint_every=1000"]
    scratch = tempfile.mkdtemp()
    cfg = config.load("pretrain", [*words, f"runs_dir={scratch}", "dataset=cifar10", "epochs=1000"])
    parts = build.build(cfg)

    def turn(steps: int) -> float:
        cfg["max_steps"] = steps + 1
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with quiet[0], quiet[1], runs.RunFolder(runs.create(Path(scratch), "bench", "{}")) as folder:
            _, summary = train.fit(cfg, parts, folder)
        return 2 * batch / float(summary["views_per_s"])

    return turn


def plain_loop(net: str, batch: int) -> Iterator[None]:
    """The best loop that we could write by hand, a step at a time."""
    import kornia.augmentation as K

    images = made_images()
    backbone, head = (module.to(memory_format=torch.channels_last) for module in net_and_head(net))
    optimizer = sgd(backbone, head)
    pipeline = K.AugmentationSequential(
        K.RandomResizedCrop((32, 32), scale=SCALE),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(*JITTER, p=0.8),
        K.RandomGrayscale(p=GRAY),
        data_keys=["input"],
    )
    views = torch.compile(pipeline) if device.compiler() else pipeline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            views(torch.rand(2 * batch, 3, 32, 32))
        except Exception:
            views = pipeline
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
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=SCALE),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(*JITTER)], p=0.8),
            transforms.RandomGrayscale(GRAY),
            transforms.ToTensor(),
        ]
    )
    data = Pictures(made_images(), lambda picture: (transform(picture), transform(picture)))
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

    transform = SimCLRTransform(input_size=32, cj_strength=0.5, min_scale=SCALE[0], gaussian_blur=0.0)
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

    transform = MoCoV2Transform(input_size=32, cj_strength=1.0, gaussian_blur=0.0)
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
OURS = {"TwoViews": "simclr", "TwoViews, MoCo v2": "moco"}


def serve(way: str, net: str, batch: int) -> None:
    """In a child: for every number of steps on stdin the seconds a step of one turn, and the peak memory so far, on stdout."""
    torch.manual_seed(0)
    ours = turns_of_ours(net, batch, OURS[way]) if way in OURS else None
    for line in sys.stdin:
        steps = int(line)
        if ours is not None:
            seconds = ours(steps)
        else:
            loop = WAYS[way](net, batch)
            next(loop)  # of this turn: workers start, kernels are chosen
            began = time.perf_counter()
            for _ in range(steps):
                next(loop)
            seconds = (time.perf_counter() - began) / steps
            loop.close()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "linux" else 2**30)
        print(json.dumps({"seconds": seconds, "GiB": peak}), flush=True)


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
        for _ in range(turns):
            for way, child in children.items():
                if child.stdin is None or child.stdout is None:
                    raise RuntimeError("a child without pipes")
                child.stdin.write(f"{steps}\n")
                child.stdin.flush()
                answer = child.stdout.readline()
                if not answer:
                    said[way].seek(0)
                    raise RuntimeError(f"{way} on {net} ended: {said[way].read()[-1000:]}")
                found[way]["seconds"].append(json.loads(answer)["seconds"])
                found[way]["GiB"] = json.loads(answer)["GiB"]
    return found


def convolution_peak(precision: str) -> float:
    """GFLOP/s of 3x3 convolutions, forward and backward, channels_last: the best of ResNet-18's shapes."""
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
    precision = "bf16" if device.has_bf16("cpu") else "fp32"
    peak = convolution_peak(precision)
    versions = f"torch {torch.__version__}, kornia {version('kornia')}, lightly {version('lightly')}"
    print(f"{device.cpu_name()}, {torch.get_num_threads()} threads; {versions}; ours in {precision}, views in ", end="")
    print(f"{'C++' if native.library() is not None else 'torch'}; convolution peak {peak:.0f} GFLOP/s in {precision}\n")
    figures: dict[str, Any] = {"cpu": device.cpu_name(), "versions": versions, "peak_gflops": peak}
    print("| net, batch | way | views/s | min-max | ours is faster by | share of the peak | GiB |\n|:--|:--|--:|--:|--:|--:|--:|")
    for net in arguments.nets.split(","):
        batch, turns, steps = (32, 1, 2) if arguments.small else NETS[net]
        ways = ["TwoViews", "plain loop", "second seed's way", "lightly"]
        ways += ["TwoViews, MoCo v2", "lightly, MoCo"] * (net in MOCO)
        found = measure(ways, net, batch, turns, steps)
        flops = gflop_a_view(net)
        for way, one in found.items():
            rates = sorted(2 * batch / seconds for seconds in one["seconds"])
            mine = found["TwoViews, MoCo v2" if "MoCo" in way else "TwoViews"]
            ratio = statistics.median(one["seconds"]) / statistics.median(mine["seconds"])
            share = f"{flops * statistics.median(rates) / peak:.0%}" if "MoCo" not in way else ""
            print(
                f"| {net}, {batch} x 2 | {way} | {statistics.median(rates):,.0f} | {rates[0]:,.0f}-{rates[-1]:,.0f} | {ratio:.2f} x "
                f"| {share} | {one['GiB']:.1f} |",
                flush=True,
            )
        views = views_share(batch)
        step = statistics.median(found["TwoViews"]["seconds"])
        print(f"| | views of a step | | | {views / step:.1%} of ours | | |", flush=True)
        figures[net] = {"batch": batch, "gflop_a_view": flops, "views_s": views, "ways": found}
    net, batch = MEMORY
    if not arguments.small and net in arguments.nets.split(","):
        found = measure(["TwoViews", "second seed's way"], net, batch, 1, 1)
        ours, theirs = (one["GiB"] for one in found.values())
        said = f"{ours:.2f} GiB; the second seed's way {theirs:.2f} GiB: ours is {ours / theirs:.2f} of it"
        print(f"\npeak memory of {net}, {batch} x 2: {said}")
        figures["memory"] = found
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
