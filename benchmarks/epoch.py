"""Seconds per epoch, share of the device's peak (MFU) and memory of the reference projects' recipes, beside their published figures.

    python benchmarks/epoch.py [--json FILE] [--device auto|cuda|cpu] [--steps 40] [--small]

The real training loop (`train.fit`) on generated images of CIFAR-10's shape. Seconds per epoch are 50,000 images at the rate of the
counted steps. The first step is not counted, because kernels are compiled and chosen in it. MFU is the floating-point operations of a
step, counted, over the device's dense peak from its data sheet, in the precision used. On a CPU `benchmarks/steps.py` measures the peak.
Memory is what tensors take on a GPU, the images of an epoch included; `nvidia-smi` also shows the context and cached blocks. On a CPU
it is the memory of the process.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from measure import parser, peak_gib, save
from ours import build_run, seconds_per_step

from twoviews import device, profiling

# method, network and batch: what the READMEs of the reference projects publish
PUBLISHED = {
    ("simclr", "resnet18", 1024): "about 15 s, A100 (dkobak)",
    ("simclr", "resnet34", 1024): "22.2 s, A100 (dkobak)",
    ("simclr", "resnet50", 512): "38.5 s, A100 (dkobak)",
    ("simclr", "resnet18", 512): "38 s and 6.2 GB, 1080 Ti (p3i0t)",
    ("simclr", "resnet34", 512): "64 s and 9.7 GB, 1080 Ti (p3i0t)",
    ("moco", "resnet18", 256): "27 s and 2.6 GB, 1080 Ti (p3i0t)",
}


def measure(method: str, net: str, batch: int, on: str, steps: int) -> dict[str, float]:
    """Return the figures of one recipe and network."""
    cfg, parts = build_run(net, batch, "moco, 8 BatchNorm parts" if method == "moco" else method, on, count=50_000)
    with tempfile.TemporaryDirectory() as scratch:
        step = seconds_per_step(cfg, parts, Path(scratch))(steps)
    flops = profiling.step_flops(parts.method, [(batch, 3, 32, 32)] * 2, labels=False) or 0
    gib = device.peak_bytes(parts.machine.device) / 2**30 if on == "cuda" else peak_gib()
    rate = 2 * batch / step
    return {"seconds_an_epoch": 100_000 / rate, "views_per_s": rate, "tflops": flops / step / 1e12, "GiB": gib}


def main() -> int:
    """Print a Markdown table; write JSON if asked."""
    options = parser(__doc__, "the smallest network, two steps of batch 32")
    options.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    options.add_argument("--steps", type=int, default=40, help="counted steps of each network")
    arguments = options.parse_args()
    machine = device.choose(device=arguments.device, threads=None, precision="auto", compile="auto")
    peak = profiling.peak_flops(machine.device, machine.precision)
    print(f"{machine}; torch {torch.__version__}; generated images\n")
    print("| method, network, batch | s per epoch | views/s | MFU | peak memory, GiB | published |\n|:--|--:|--:|--:|--:|:--|")
    figures: dict[str, Any] = {"machine": str(machine)}
    cases = {("simclr", "thin32", 32): "a trial"} if arguments.small else PUBLISHED
    for (method, net, batch), published in cases.items():
        # one process each, so that memory is not left over from the network before
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            one = pool.submit(measure, method, net, batch, machine.device.type, 2 if arguments.small else arguments.steps).result()
        tflops = one["tflops"]
        share = f"{tflops / (peak / 1e12):.0%} of {peak / 1e12:.0f} TFLOP/s" if peak else f"{tflops:.2f} TFLOP/s"
        cells = f"{one['seconds_an_epoch']:.1f} | {one['views_per_s']:,.0f} | {share} | {one['GiB']:.1f}"
        print(f"| {method}, {net}, {batch} x 2 | {cells} | {published} |", flush=True)
        figures[f"{method} {net} {batch}"] = one
    save(arguments.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
