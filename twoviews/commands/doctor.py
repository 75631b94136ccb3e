"""`twoviews doctor`: what this machine has, and what TwoViews would choose."""

from __future__ import annotations

import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from twoviews import device
from twoviews.config import Config
from twoviews.data.idx import DEBIAN


def run(cfg: Config) -> int:
    """The verb."""
    machine = device.choose(device=cfg.device, threads=cfg.threads, precision=cfg.precision, compile=cfg.compile)
    place = Path(cfg.runs_dir)
    there = next(p for p in (place, *place.resolve().parents) if p.is_dir())
    lines = {
        "chosen": str(machine),
        "torch": f"{torch.__version__}, torchvision {metadata.version('torchvision')}",
        "processor": f"{device.cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, bf16 in hardware: {_yes(device.has_bf16('cpu'))}",
        "GPU": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
        "compiler": device.compiler() or "none: torch makes the views, several times more slowly (install g++)",
        "report extra": _yes(
            find_spec("matplotlib") is not None and find_spec("jinja2") is not None,
            "no: pip install 'twoviews[report]' for report.html",
        ),
        "runs_dir": f"{place}, {shutil.disk_usage(there).free / 2**30:.0f} GiB free",
        "Fashion-MNIST": _yes(DEBIAN.is_dir(), "not installed: a first run downloads it; fashion_mini is in the package"),
    }
    for name, text in lines.items():
        print(f"{name:14} {text}")
    return 0


def _yes(so: bool, otherwise: str = "no") -> str:
    return "yes" if so else otherwise
