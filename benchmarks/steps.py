"""Training steps: TwoViews beside other tools. Views per second, peak memory, and the share of this machine's convolution peak.

    python benchmarks/steps.py [--json FILE] [--nets resnet18,thin32] [--small]

All train the same network with the projector, loss, views and SGD of dkobak/simclr-cifar10, on generated images of CIFAR-10's
shape that are in memory (`peers.py` has the code of the other tools):

- TwoViews: `train.fit` with recipe=simclr_cifar10, as `twoviews pretrain` runs it;
- plain loop: bfloat16 autocast where the processor supports it, channels_last, one forward for both views, uint8 tensors, SGD with
  foreach, and the fastest form of kornia's views on this machine: eager, compiled, or compiled with one order of the jitter;
- dkobak's way: float32, contiguous, two forwards, torchvision on PIL images in a DataLoader with one worker per core;
- lightly: SimCLRTransform, SimCLRProjectionHead and NTXentLoss in the loop of its documentation;
- MoCo v2 (queue 4,096, each view once) beside lightly's MoCo parts, with one BatchNorm for the batch as in lightly, and with
  BatchNorm in eight parts as in our recipe.

Each has a process of its own with one thread per core, and they run in turns. The first step of a turn is not counted. Where steps
are short, nor are the steps whose batches were prefetched before it ended. TwoViews and the plain loop let the C library keep freed
memory (`device.keep_freed_memory`); the others run as documented. Peak memory is that of the main process.

The convolution peak is that of 3x3 convolutions, forward and backward, in our precision, for the best of ResNet-18's four shapes. It
is measured before and after the turns of each network, and the better value counts.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
from argparse import SUPPRESS
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peers
import torch
from measure import parser, peak_gib, save, timed, times
from ours import build_run, seconds_of_views, seconds_per_step
from torch.nn import functional as F

from twoviews import build, device

# network: batch, turns, counted steps of a turn
NETS = {"resnet18": (128, 3, 2), "thin16": (256, 3, 10), "thin32": (256, 3, 10), "resnet34": (64, 1, 1), "resnet50": (64, 1, 1)}
MOCO = ("resnet18", "thin32")  # networks that MoCo v2 is measured with too
MEMORY = ("resnet18", 512)  # network and batch whose peak memory is compared
SHORT = 5  # counted steps above which prefetched batches matter
OURS = {"TwoViews": "simclr", "TwoViews, MoCo v2": "moco", "TwoViews, MoCo v2, 8 BatchNorm parts": "moco, 8 BatchNorm parts"}
PEERS: dict[str, Callable[[str, int], Iterator[None]]] = {
    "plain loop": peers.plain_loop,
    "dkobak's way": peers.dkobak,
    "lightly": peers.lightly_simclr,
    "lightly, MoCo": peers.lightly_moco,
}


def serve(way: str, net: str, batch: int) -> None:
    """Run in a child process: read numbers of steps from stdin, write seconds per step and peak memory to stdout."""
    torch.manual_seed(0)
    torch.set_num_threads(peers.WORKERS)
    if way == "plain loop":  # as the best loop by hand would; TwoViews does it itself, the others do not
        device.keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        turn = seconds_per_step(*build_run(net, batch, OURS[way]), Path(scratch)) if way in OURS else _peer_turns(way, net, batch)
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps({"seconds": turn(int(line)), "GiB": peak_gib()}), flush=True)


def _peer_turns(way: str, net: str, batch: int) -> Callable[[int], float]:
    """Return a function that trains so many steps and returns the seconds of one."""
    kept = PEERS[way](net, batch) if way == "plain loop" else None

    def turn(steps: int) -> float:
        loop = kept or PEERS[way](net, batch)
        for _ in range(1 + (peers.PREFETCHED if steps > SHORT else 0)):
            next(loop)
        seconds, _ = timed(lambda: [next(loop) for _ in range(steps)])
        if kept is None:
            loop.close()  # type: ignore[attr-defined]  # ends its workers, which would work on between the turns
        return seconds / steps

    return turn


def measure(ways: list[str], net: str, batch: int, turns: int, steps: int) -> dict[str, dict[str, Any]]:
    """Return the seconds per step of each way, one per turn, and its peak memory; `failed` where it ended with an error."""
    results: dict[str, dict[str, Any]] = {way: {"seconds": [], "GiB": 0.0} for way in ways}
    with contextlib.ExitStack() as stack:
        logs = {way: stack.enter_context(tempfile.TemporaryFile("w+")) for way in ways}
        children = {}
        for way in ways:
            words = [sys.executable, __file__, "--one", way, net, str(batch)]
            children[way] = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=logs[way], text=True)
            stack.callback(children[way].kill)
            _answer(children[way], None)  # one after another: no turn runs while another process imports
        for _ in range(turns):
            for way, child in children.items():
                answer = _answer(child, steps) if "failed" not in results[way] else ""
                if answer:
                    results[way]["seconds"].append(json.loads(answer)["seconds"])
                    results[way]["GiB"] = json.loads(answer)["GiB"]
                elif "failed" not in results[way]:
                    logs[way].seek(0)
                    results[way]["failed"] = " ".join(logs[way].read().split())[-300:] or f"ended with {child.wait()}"
    return results


def _answer(child: subprocess.Popen[str], steps: int | None) -> str:
    """Ask a child to run so many steps (None: wait until it is ready), and return its answer; empty if it has ended."""
    if child.stdin is None or child.stdout is None:
        raise RuntimeError("a child without pipes")
    with contextlib.suppress(BrokenPipeError):
        if steps is not None:
            child.stdin.write(f"{steps}\n")
            child.stdin.flush()
    while (line := child.stdout.readline()) and not line.startswith(("ready", "{")):
        pass  # lines of compilers
    return line


def convolution_peak(precision: str) -> float:
    """Return GFLOP/s of 3x3 convolutions, forward and backward, channels_last: the best of ResNet-18's shapes."""
    device.keep_freed_memory()
    dtype, best = (torch.bfloat16 if precision == "bf16" else torch.float32), 0.0
    for channels, side in ((64, 32), (128, 16), (256, 8), (512, 4)):
        x = torch.randn(256, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(channels, channels, 3, 3, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
        grad = torch.randn_like(x)

        def run(x: torch.Tensor = x, weight: torch.Tensor = weight, grad: torch.Tensor = grad) -> object:
            return torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), grad)

        seconds = min(timed(run)[0] for _ in range(6))
        best = max(best, 3 * 2 * 256 * side**2 * channels**2 * 9 / seconds / 1e9)
    return best


def gflop_per_view(net: str) -> float:
    """Return the operations of a training step per view: forward and backward, without the gradient of the images."""
    from torch.utils.flop_counter import FlopCounterMode

    backbone, head = peers.build_encoder(net)
    with FlopCounterMode(display=False) as counter:
        head(backbone(torch.randn(8, 3, 32, 32))).sum().backward()
    return counter.get_total_flops() / 8 / 1e9


def compare(net: str, batch: int, turns: int, steps: int, precision: str) -> dict[str, Any]:
    """Measure every way to train one network, print its rows, and return the figures."""
    ways = ["TwoViews", "plain loop", "dkobak's way", "lightly"]
    ways += [*list(OURS)[1:], "lightly, MoCo"] * (net in MOCO)
    peak = convolution_peak(precision)
    results = measure(ways, net, batch, turns, steps)
    peak = max(peak, convolution_peak(precision))  # the machine drifts: the better of before and after
    flops = gflop_per_view(net)
    for way, one in results.items():
        if "failed" in one:
            print(f"| {net}, {batch} x 2 | {way} | failed: {one['failed'][-80:]} | | | | |", flush=True)
            continue
        rates = sorted(2 * batch / seconds for seconds in one["seconds"])
        mine = results["TwoViews, MoCo v2" if "MoCo" in way else "TwoViews"]
        one["faster"] = times(one["seconds"], mine["seconds"]) if "failed" not in mine else math.nan
        one["share"] = flops * statistics.median(rates) / peak
        share = "" if "MoCo" in way else f"{one['share']:.0%}"
        rate = f"{statistics.median(rates):,.0f} | {rates[0]:,.0f}-{rates[-1]:,.0f}"
        print(f"| {net}, {batch} x 2 | {way} | {rate} | {one['faster']:.2f} x | {share} | {one['GiB']:.1f} |", flush=True)
    views = seconds_of_views(batch)
    part = "" if "failed" in results["TwoViews"] else f"{views / statistics.median(results['TwoViews']['seconds']):.1%} of our step"
    print(f"| {net}, {batch} x 2 | views alone, and the convolution peak | | | {part} | {peak:.0f} GFLOP/s | |", flush=True)
    return {"batch": batch, "gflop_per_view": flops, "peak_gflops": peak, "views_s": views, "ways": results}


def main() -> int:
    """Print Markdown tables; write JSON if asked."""
    options = parser(__doc__, "thin32 only, one turn of two steps, batch 32")
    options.add_argument("--nets", default=",".join(NETS), help="networks, separated by commas")
    options.add_argument("--one", nargs=3, metavar=("WAY", "NET", "BATCH"), help=SUPPRESS)
    arguments = options.parse_args()
    if arguments.one:
        way, net, batch = arguments.one
        serve(way, net, int(batch))
        return 0
    torch.set_num_threads(peers.WORKERS)
    machine = device.choose(device="cpu", threads=None, precision="auto", compile="auto")
    versions = ", ".join(f"{name} {version(name.lower())}" for name in ("torch", "torchvision", "Pillow", "kornia", "lightly"))
    print(f"{device.cpu_name()}, {torch.get_num_threads()} threads; {versions}; TwoViews in {machine.precision}, ", end="")
    print(f"views by {build.views_backend(machine)}, layers by {build.layers_backend(machine)}\n")
    figures: dict[str, Any] = {"cpu": device.cpu_name(), "versions": versions}
    print("| network, batch | way | views/s | min-max | TwoViews is faster by | share of the peak | GiB |")
    print("|:--|:--|--:|--:|--:|--:|--:|")
    nets = ["thin32"] if arguments.small else arguments.nets.split(",")
    for net in nets:
        figures[net] = compare(net, *((32, 1, 2) if arguments.small else NETS[net]), machine.precision)
        save(arguments.json, figures)  # now: what follows may fail
    net, batch = MEMORY
    if not arguments.small and net in nets:
        figures["memory"] = measure(["TwoViews", "dkobak's way"], net, batch, 1, 1)
        ours, theirs = (one["GiB"] for one in figures["memory"].values())
        text = f"TwoViews {ours:.2f} GiB, dkobak's way {theirs:.2f} GiB, ratio {ours / (theirs or math.nan):.2f}"
        print(f"\npeak memory of {net}, {batch} x 2: {text}")
        save(arguments.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
