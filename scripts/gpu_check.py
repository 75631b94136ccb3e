"""Everything that is worth knowing about a GPU in ten minutes: does training work there, is it right, how fast is it, does it resume?

    python scripts/gpu_check.py [--steps NAME ...] [--data-dir FOLDER] [--device cuda|cpu] [--small] [--out gpu_check.json]

Each step is a process of its own with a time limit, so one that crashes or hangs takes no other with it. After each step the
figures are written to `--out`, and at the end a Markdown table to a file of the same name that ends in `.md`. Without
`--data-dir` (CIFAR-10 in any form that `twoviews` reads) the images are generated and the last step trains on the bundled cells.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twoviews import build, config, device, runs, train
from twoviews.data.arrays import Arrays
from twoviews.data.dataset import load
from twoviews.probes.knn import search
from twoviews.probes.linear import linear
from twoviews.profiling import peak_flops, step_flops

WHOLE = 590.0  # seconds of all steps
RESULT = "RESULT "  # begins the line with which a step's process reports
# what is measured, words of the command, published seconds per epoch on an A100 (dkobak, README of 2025-06-04)
SPEED: dict[str, tuple[list[str], float | None]] = {
    "SimCLR ResNet-18, 512 x 2": (["recipe=simclr", "backbone=resnet18", "batch_size=512"], None),
    "SimCLR ResNet-18, 1024 x 2": (["recipe=simclr_cifar10", "backbone=resnet18", "batch_size=1024"], 15.0),
    "the same, not compiled": (["recipe=simclr_cifar10", "backbone=resnet18", "batch_size=1024", "compile=false"], None),
    "SimCLR ResNet-50, 512 x 2": (["recipe=simclr_cifar10", "backbone=resnet50", "batch_size=512"], 38.5),
    "MoCo ResNet-18, 256 x 2, 8 sub-batches": (["recipe=moco", "backbone=resnet18", "batch_size=256"], None),
}


def arrays(options: Namespace) -> Arrays:
    """Return the training images: CIFAR-10, or generated ones of its shape."""
    if options.data_dir:
        data = load("cifar10", options.data_dir)
        images, labels = data.images.numpy(), data.labels.numpy()
        return Arrays("CIFAR-10", images, labels, data.test_images.numpy(), data.test_labels.numpy(), data.classes)
    random, count = np.random.default_rng(0), 600 if options.small else 50_000
    images, labels = random.integers(0, 256, (count, 3, 32, 32), np.uint8), np.arange(count) % 10
    return Arrays("generated images", images, labels, images[:100], labels[:100], tuple("abcdefghij"))


def settings(options: Namespace, words: list[str], steps: int, **more: Any) -> config.Config:
    """Return the configuration of a short run without probes and checkpoints."""
    chosen = {"device": options.device, "probe_every": 0, "checkpoint_every": 10_000, "max_steps": steps, "dataset": "cifar10", "seed": 0}
    chosen |= {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if options.small:
        chosen |= {"backbone": "thin16", "batch_size": 32}
        chosen |= {"queue_size": 64} if chosen["recipe"] == "moco" else {}
    return config.load("pretrain", [f"{key}={value}" for key, value in {**chosen, **more}.items()])


def fit(cfg: config.Config, data: Arrays, folder: Path) -> tuple[build.Parts, dict[str, Any], list[float]]:
    """Train until `max_steps`, from the folder's checkpoint if it has one. Return the parts, the summary and the losses."""
    parts = build.build(cfg, data)
    with runs.RunFolder(folder) as run:
        code, summary = train.fit(cfg, parts, run)
    if code:
        raise RuntimeError(f"stopped with exit code {code}")
    return parts, summary, [row["loss"] for row in runs.read_metrics(folder)]


def new(scratch: Path) -> Path:
    """Return an empty run folder."""
    return runs.create(scratch, "run", "seed: 0\n")


def start(options: Namespace, scratch: Path) -> dict[str, Any]:
    """Take three steps, not compiled and compiled."""
    data, found = arrays(options), {}
    for mode in ("false", "auto"):
        cfg = settings(options, SPEED["SimCLR ResNet-18, 512 x 2"][0], 3, compile=mode)
        began = time.perf_counter()
        parts, _, losses = fit(cfg, data, new(scratch))
        found |= {f"losses, compile={mode}": losses, f"seconds, compile={mode}": time.perf_counter() - began, "machine": str(parts.machine)}
    return found | {"torch": torch.__version__, "python": platform.python_version()}


def parity(options: Namespace, scratch: Path) -> dict[str, Any]:
    """Compare three steps in float32 on a CPU, on the device, and compiled there; and a kNN search on both."""
    data, words = arrays(options), ["recipe=simclr", "backbone=resnet18", "batch_size=128", "precision=fp32"]
    runs_on = {"cpu": {"device": "cpu", "compile": "false"}, "device": {"compile": "false"}, "compiled": {"compile": "auto"}}
    losses = {name: fit(settings(options, words, 3, **more), data, new(scratch))[2] for name, more in runs_on.items()}
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 64, generator=generator) for n in ((500, 50) if options.small else (20_000, 2000)))
    here = search(bank, queries, k=20, metrics=["cosine"])["cosine"]
    there = search(bank.to(options.device), queries.to(options.device), k=20, metrics=["cosine"])["cosine"]
    worst = {name: max(abs(a / b - 1) for a, b in zip(losses[name], losses["cpu"], strict=True)) for name in ("device", "compiled")}
    same = (here.rows == there.rows.cpu()).double().mean().item()
    return {"losses": losses, "largest relative difference of a loss from the CPU's": worst, "share of equal neighbours": same}


def speed(options: Namespace, scratch: Path) -> dict[str, Any]:
    """Measure each configuration."""
    data, found = arrays(options), {}
    for name, (words, published) in SPEED.items():
        cfg = settings(options, words, 6 if options.small else 200)
        try:
            parts, summary, losses = fit(cfg, data, new(scratch))
        except (RuntimeError, MemoryError, ValueError) as error:
            found[name] = {"failed": " ".join(str(error).split())[:300]}
            continue
        flops = step_flops(parts.method, [(cfg.batch_size, 3, 32, 32)] * 2, labels=False) or 0
        rate, peak = summary["views_per_s"], peak_flops(parts.machine.device, parts.machine.precision)
        mfu = flops * rate / (2 * cfg.batch_size) / peak if peak else None
        figures = {"views_per_s": rate, "seconds_an_epoch": 100_000 / rate, "mfu": mfu, "loss": losses[-1]}
        figures |= {"compile_seconds": summary["compile_seconds"], "GiB": summary["peak_bytes"] / 2**30, "published": published}
        found[name] = figures
        print(f"{name}: {rate:,.0f} views/s", flush=True)
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        del parts
    return found


def profile(options: Namespace, scratch: Path) -> dict[str, Any]:
    """Print the operations that take longest; the trace is kept beside `--out`."""
    folder = new(scratch)
    fit(settings(options, SPEED["SimCLR ResNet-18, 512 x 2"][0], 24, profile="true"), arrays(options), folder)
    kept = Path(options.out).with_suffix(".trace.json")
    (folder / runs.TRACE).replace(kept)
    return {"trace": str(kept), "bytes": kept.stat().st_size}


def resume(options: Namespace, scratch: Path) -> dict[str, Any]:
    """Compare 20 steps with 10 and then 10 more, with and without `deterministic`."""
    data, found = arrays(options), {}
    for deterministic in (False, True):
        ends = []
        for stops in ((20,), (10, 20)):
            folder = new(scratch)
            for stop in stops:
                cfg = settings(options, SPEED["SimCLR ResNet-18, 512 x 2"][0], stop, deterministic=str(deterministic).lower())
                parts, _, losses = fit(cfg, data, folder)
            ends.append((losses, [value.cpu() for value in parts.method.state_dict().values()]))
        equal = all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))
        worst = max(abs(a / b - 1) for a, b in zip(ends[0][0], ends[1][0], strict=True))
        found[f"deterministic={deterministic}"] = {"equal bit for bit": equal, "largest relative difference of a loss": worst}
    return found


def evaluation(options: Namespace, scratch: Path) -> dict[str, Any]:
    """Measure kNN and the linear probe on 50,000 features on the device."""
    rows, dims = (600, 16) if options.small else (50_000, 512)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (rows,), generator=generator)
    features = torch.randn(rows, dims, generator=generator) + torch.randn(10, dims, generator=generator)[labels]
    features, labels = features.to(options.device), labels.to(options.device)
    fifth, found = rows // 5, {}
    tasks: dict[str, Callable[[], Any]] = {
        "kNN": lambda: search(features, features[:fifth], k=200),
        "linear": lambda: linear(features[fifth:], labels[fifth:], features[:fifth], labels[:fifth], classes=10),
    }
    for name, run in tasks.items():
        run()
        began = time.perf_counter()
        run()
        if options.device == "cuda":
            torch.cuda.synchronize()
        found[f"{name}, seconds"] = time.perf_counter() - began
    return found


def recipe(options: Namespace, scratch: Path) -> dict[str, Any]:
    """Train dkobak's 100-epoch recipe, of which 83.2 % kNN with k = 10 is published, and evaluate it."""
    words = ["recipe=simclr_cifar10_v2", "epochs=100", "base_learning_rate=0.06", "checkpoint_every=25", "probe_every=0", "probes=knn"]
    words += [f"device={options.device}", f"runs_dir={scratch}"]
    words += [f"data_dir={options.data_dir}"] if options.data_dir else ["dataset=blood_cells"]
    words += ["backbone=thin16", "batch_size=32", "max_steps=3", "train_size=600"] if options.small else []
    subprocess.run([sys.executable, "-m", "twoviews", "pretrain", *words], check=True)
    summary = runs.read_json(runs.folders(scratch)[-1], runs.SUMMARY)
    accuracies = {row["k"]: row["accuracy"] for row in summary["evaluations"] if row["of"] == "trained" and row["metric"] == "cosine"}
    return {"kNN": accuracies, "wall_seconds": summary["wall_seconds"], **summary["train"]}


# of each step: the function and its limit in seconds
STEPS: dict[str, tuple[Callable[[Namespace, Path], dict[str, Any]], float]] = {
    "start": (start, 60),
    "parity": (parity, 50),
    "speed": (speed, 150),
    "profile": (profile, 40),
    "resume": (resume, 50),
    "evaluation": (evaluation, 30),
    "recipe": (recipe, 210),
}


def in_a_process(name: str, words: list[str], limit: float) -> dict[str, Any]:
    """Run one step in a process of its own. Return its figures, or what went wrong, and its seconds."""
    began, command = time.monotonic(), [sys.executable, __file__, "--one", name, *words]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True) as process:
        try:
            lines = process.communicate(timeout=limit)[0].splitlines()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            lines = [*process.communicate()[0].splitlines(), f"ended after its limit of {limit:.0f} s"]
    found = [json.loads(line.removeprefix(RESULT)) for line in lines if line.startswith(RESULT)]
    figures = found[-1] if found else {"failed": lines[-20:]}
    return {**figures, "seconds of this step": round(time.monotonic() - began, 1)}


def table(report: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    machine = report.get("start", {}).get("machine", "unknown machine")
    lines = [f"# GPU check: {machine}", "", "| training | views/s | s per epoch | published, A100 | MFU | GiB | compiling |"]
    lines += ["|:--|--:|--:|--:|--:|--:|--:|"]
    for name, row in report.get("speed", {}).items():
        if isinstance(row, dict) and "views_per_s" in row:
            mfu, published = (f"{row['mfu']:.0%}" if row["mfu"] else ""), row["published"] or ""
            cells = [name, f"{row['views_per_s']:,.0f}", f"{row['seconds_an_epoch']:.2f}", f"{published}", mfu]
            cells += [f"{row['GiB']:.1f}", f"{row['compile_seconds']:.0f} s"]
            lines.append(f"| {' | '.join(cells)} |")
        elif isinstance(row, dict):
            lines.append(f"| {name} | failed: {row.get('failed')} | | | | | |")
    lines += ["", "| step | seconds | figures |", "|:--|--:|:--|"]
    for name in (name for name in STEPS if name in report and name != "speed"):
        figures = {key: value for key, value in report[name].items() if key != "seconds of this step"}
        text = json.dumps(figures, default=str).replace("|", "/")
        lines.append(f"| {name} | {report[name].get('seconds of this step', '')} | {text[:600]} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the steps; return 1 if one failed."""
    options = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    options.add_argument(
        "--steps", nargs="+", choices=tuple(STEPS), default=list(STEPS), metavar="NAME", help=f"some of {', '.join(STEPS)}"
    )
    options.add_argument("--data-dir", type=os.path.abspath, help="CIFAR-10: its archive, its folder, or an image tree")
    options.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options.add_argument("--small", action="store_true", help="a quick trial of the script; its figures mean nothing")
    options.add_argument("--out", type=os.path.abspath, default="gpu_check.json", help="file of the figures")
    options.add_argument("--one", choices=tuple(STEPS), help="run this step in this process")
    arguments = options.parse_args()
    device.find(arguments.device)  # an error here, not in every step
    if arguments.one:
        with tempfile.TemporaryDirectory() as scratch:
            print(RESULT + json.dumps(STEPS[arguments.one][0](arguments, Path(scratch)), default=str), flush=True)
        return 0
    words = ["--device", arguments.device, "--out", arguments.out, *["--small"] * arguments.small]
    words += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    report: dict[str, Any] = {"device": arguments.device, "small": arguments.small}
    began = time.monotonic()
    for name in arguments.steps:
        left = WHOLE - (time.monotonic() - began)
        report[name] = in_a_process(name, words, min(STEPS[name][1], left)) if left > 5 else {"failed": "no time left"}
        print(f"{name}: {'failed: ' + str(report[name]['failed'])[-300:] if 'failed' in report[name] else 'done'}", flush=True)
        Path(arguments.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = table(report)
    Path(arguments.out).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return int(any("failed" in report[name] for name in arguments.steps))


if __name__ == "__main__":
    sys.exit(main())
