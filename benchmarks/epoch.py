"""Seconds an epoch, share of the device's peak (MFU) and memory of both seeds' recipes on this device, beside what the seeds published.

    python benchmarks/epoch.py [--json FILE] [--device auto|cuda|cpu] [--steps 40] [--small]

The real loop (`train.fit`) on made images of CIFAR-10's shape: seconds an epoch are 50,000 images at the rate of the counted steps,
which leave out the first, in which kernels are compiled and chosen. MFU: floating-point operations of a step, counted, over the device's
dense peak in the precision used, from its data sheet; on a CPU benchmarks/steps.py measures that peak. Memory is what tensors take on
a GPU (an epoch's images among it; `nvidia-smi` shows the context and what is kept too), on a CPU the process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from measure import peak_gib
from steps import parts_of_ours, turns_of_ours

from twoviews import device, profiling

# method, net and batch: what the READMEs of the seeds say, the first of a 1080 Ti, the second of an A100 with 16 workers
PUBLISHED = {
    ("simclr", "resnet18", 1024): "about 15 s, A100 (second seed)",
    ("simclr", "resnet34", 1024): "22.2 s, A100 (second seed)",
    ("simclr", "resnet50", 512): "38.5 s, A100 (second seed)",
    ("simclr", "resnet18", 512): "38 s and 6.2 GB, 1080 Ti (first seed)",
    ("simclr", "resnet34", 512): "64 s and 9.7 GB, 1080 Ti (first seed)",
    ("moco", "resnet18", 256): "27 s and 2.6 GB, 1080 Ti (first seed)",
}


def measured(method: str, net: str, batch: int, where: str, steps: int) -> dict[str, float]:
    """Figures of one recipe and net."""
    cfg, parts = parts_of_ours(net, batch, "moco in parts" if method == "moco" else method, where, count=50_000)
    with tempfile.TemporaryDirectory() as scratch:
        step = turns_of_ours(cfg, parts, Path(scratch))(steps)
    flops = profiling.step_flops(parts.method, [(batch, 3, 32, 32)] * 2, labels=False) or 0
    gib = device.peak_bytes(parts.machine.device) / 2**30 if where == "cuda" else peak_gib()
    rate = 2 * batch / step
    return {"seconds_an_epoch": 100_000 / rate, "views_per_s": rate, "tflops": flops / step / 1e12, "GiB": gib}


def main() -> int:
    """Print a Markdown table; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=40, help="counted steps of each net")
    parser.add_argument("--small", action="store_true", help="the smallest net, two steps at batch 32: a trial")
    arguments = parser.parse_args()
    machine = device.choose(device=arguments.device, threads=None, precision="auto", compile="auto")
    peak = profiling.peak_flops(machine.device, machine.precision)
    print(f"{machine}; torch {torch.__version__}; made images\n")
    print("| method, net, batch | s an epoch | views/s | MFU | peak memory, GiB | published |\n|:--|--:|--:|--:|--:|:--|")
    figures: dict[str, Any] = {"machine": str(machine)}
    cases = {("simclr", "thin32", 32): "a trial"} if arguments.small else PUBLISHED
    for (method, net, batch), published in cases.items():
        # a process each: memory that one net leaves behind is not the next one's
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            one = pool.submit(measured, method, net, batch, machine.device.type, 2 if arguments.small else arguments.steps).result()
        tflops, rate = one["tflops"], one["views_per_s"]
        share = f"{tflops / (peak / 1e12):.0%} of {peak / 1e12:.0f} TFLOP/s" if peak else f"{tflops:.2f} TFLOP/s"
        cells = f"{one['seconds_an_epoch']:.1f} | {rate:,.0f} | {share} | {one['GiB']:.1f}"
        print(f"| {method}, {net}, {batch} x 2 | {cells} | {published} |", flush=True)
        figures[f"{method} {net} {batch}"] = one
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
