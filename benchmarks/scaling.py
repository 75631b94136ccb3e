"""Several processes on one CPU, beside one process with as many threads; and a model of the time of a step, for 1 to 1,024 GPUs.

    python benchmarks/scaling.py [--json FILE] [--small]

- Training: `recipe=cifar_thin` (SimCLR, thin32, batch 256) on the bundled blood cells, in fp32: one process with two threads, and
  two processes with one thread each. They run in turns.
- The model: the time of a step is the sum of its parts, none of which overlaps another. For two processes the parts are
  measured alone: forward, backward and optimiser of half a batch in one process; averaging tensors of the size of all gradients
  and running statistics; gathering the projections; drawing random numbers. The sum is compared with the measured step.
- For GPUs the parts are computed, not measured, from the constants below.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import in_turn, median_and_range, parser, save, timed

from twoviews import build, config, distributed, runs, train
from twoviews.device import cpu_name

BATCH, STEPS, SMALL, TURNS, REPEATS = 256, 60, 8, 3, 50
WORDS = ["recipe=cifar_thin", "dataset=blood_cells", "data_dir=null", "precision=fp32", "device=cpu", "probe_every=0", "epochs=10"]

# A step of ResNet-18 by SimCLR on GPUs, 512 images each. Computed, not measured: the compute time is 1.3 s for an epoch of 97 steps
# (an estimate between 1.1 and 1.5 s: the operations of a step at a quarter of an H100's bf16 peak); the bandwidths are those of its data
# sheet (NVLink 450 GB/s in each direction) and of one 400 Gb/s network card for each GPU, of which 80 % are taken to be reached.
IMAGES, COMPUTE, GRADIENTS, OUT_DIM = 512, 1.3 / 97, 4 * 11_500_000, 128
NVLINK, NETWORK, REACHED, PER_MACHINE = 450e9, 50e9, 0.8, 8
HOP = {True: 5e-6, False: 15e-6}  # seconds of one hop inside a machine, and between machines
PRODUCTS = 30e12  # float32 operations per second of an H100 that NT-Xent's products reach


def collective(sent: float, gpus: int) -> float:
    """Return the seconds in which each GPU sends so many bytes to the next one in a ring, and a tree's hops twice."""
    inside = gpus <= PER_MACHINE
    return sent / (REACHED * (NVLINK if inside else NETWORK)) + 2 * math.ceil(math.log2(gpus)) * HOP[inside]


def step_on_gpus(gpus: int) -> dict[str, float]:
    """Return the computed parts of a step, in seconds."""
    if gpus == 1:
        parts = {"compute": COMPUTE, "gradients": 0.0, "projections": 0.0}
    else:
        share, rows = (gpus - 1) / gpus, 2 * IMAGES * gpus
        gathered = 2 * collective(4 * rows * OUT_DIM * share, gpus)  # in the forward and in the backward pass
        parts = {"compute": COMPUTE, "gradients": collective(2 * GRADIENTS * share, gpus), "projections": gathered}
    parts["loss"] = 3 * 2 * (2 * IMAGES) * (2 * IMAGES * gpus) * OUT_DIM / PRODUCTS  # logits, and the gradients of both factors
    return {**parts, "step": sum(parts.values())}


def table_of_gpus() -> str:
    """Return the table of docs/scaling.md."""
    lines = [
        "| GPUs | images a step | compute, ms | gradients, ms | projections, ms | loss, ms | step, ms | efficiency |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    one = step_on_gpus(1)["step"]
    for gpus in (1, 2, 4, 8, 16, 64, 256, 1024):
        parts = step_on_gpus(gpus)
        shown = " | ".join(f"{1000 * parts[name]:.1f}" for name in ("compute", "gradients", "projections", "loss", "step"))
        lines.append(f"| {gpus:,} | {IMAGES * gpus:,} | {shown} | {100 * one / parts['step']:.0f} % |")
    return "\n".join(lines)


def worker(steps: int, threads: int, batch: int) -> None:
    """Train some steps in the processes that are joined here; the first one prints the figures as JSON."""
    with distributed.group(120), tempfile.TemporaryDirectory() as scratch:
        cfg = config.load(
            "pretrain", [*WORDS, f"threads={threads}", f"batch_size={batch}", f"max_steps={steps}", "checkpoint_seconds=1000"]
        )
        parts = build.build(cfg)
        path = runs.create(Path(scratch), "run", "{}")
        with runs.RunFolder(path, writes=distributed.first()) as run:
            _, found = train.fit(cfg, parts, run)
        seconds = {"step": batch * 2 / found["views_per_s"]}
        if distributed.size() > 1:
            seconds |= communication(parts, batch // distributed.size())
        if distributed.first():
            print(json.dumps(seconds))


def communication(parts: build.Parts, images: int) -> dict[str, float]:
    """Return the seconds of what the processes exchange in a step, each measured alone: the median of many."""
    gradients = torch.zeros(sum(p.numel() for p in parts.method.parameters() if p.requires_grad))
    z = torch.randn(2 * images, parts.method.modules_to_probe()["z"](torch.zeros(2, 3, 32, 32)).shape[1], requires_grad=True)
    agree = distributed.Agreement()
    work = {
        "gradients": lambda: distributed.mean(gradients),
        "running statistics": lambda: distributed.average_running_statistics(parts.method),
        "projections": lambda: distributed.gather_views(z, 2)[0].sum().backward(),
        "agreement": lambda: agree(0, 0),
    }
    return {name: median(timed(one)[0] for _ in range(REPEATS)) for name, one in work.items()}


def start(processes: int, threads: int, batch: int, steps: int) -> dict[str, float]:
    """Return the figures of one training."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [sys.executable, __file__, "--worker", str(steps), str(threads), str(batch)]
    started = []
    for rank in range(processes):
        own = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(threads)}
        started.append(subprocess.Popen(words, env=own, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("a process failed: see above")
    return json.loads(printed[0].splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """Run and print the tables."""
    if "--worker" in sys.argv:
        steps, threads, batch = map(int, sys.argv[-3:])
        return worker(steps, threads, batch)
    options = parser(__doc__, "few steps, one turn").parse_args()
    steps, turns = (SMALL, 1) if options.small else (STEPS, TURNS)
    contenders = {
        "one process, two threads": lambda: start(1, 2, BATCH, steps),
        "two processes, one thread each": lambda: start(2, 1, BATCH, steps),
        "half a batch, one process, one thread": lambda: start(1, 1, BATCH // 2, steps),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, result in in_turn(contenders, 1)[1].items():
            found[name].append(result)
    one, two, half = found.values()
    print(f"{cpu_name()}, fp32; {turns} turns of {steps} steps of {2 * BATCH} views; median (smallest-largest)\n")
    print("| training | views/s |\n|:--|--:|")
    for name in list(contenders)[:2]:
        print(f"| {name} | {median_and_range([2 * BATCH / result['step'] for result in found[name]], ',.0f')} |")
    ratio = median(a["step"] / b["step"] for a, b in zip(one, two, strict=True))
    print(f"\nTwo processes have {ratio:.2f} times the views/s of one (median of the turns).\n")
    parts: dict[str, Any] = {"half a batch, alone": median(result["step"] for result in half)}
    parts |= {name: median(result[name] for result in two) for name in two[0] if name not in ("step", "agreement")}
    measured = median(result["step"] for result in two)
    print("| part of a step of two processes | ms |\n|:--|--:|")
    for name, seconds in parts.items():
        print(f"| {name} | {1000 * seconds:.1f} |")
    print(f"| sum: the model | {1000 * sum(parts.values()):.1f} |\n| measured | {1000 * measured:.1f} |\n")
    print(f"Computed for GPUs:\n\n{table_of_gpus()}")
    save(options.json, {"turns": found, "ratio": ratio, "parts": parts, "measured": measured})


if __name__ == "__main__":
    main()
