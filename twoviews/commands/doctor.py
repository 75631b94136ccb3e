"""`twoviews doctor`: what this machine has, and what TwoViews would choose."""

import shutil
from importlib import metadata
from pathlib import Path

import torch

from twoviews import device
from twoviews.config import Config
from twoviews.data.idx import DEBIAN


def run(cfg: Config) -> int:
    """Print one line per fact."""
    machine = device.choose(device=cfg.device, threads=cfg.threads, precision=cfg.precision, compile=cfg.compile)
    folder = Path(cfg.runs_dir)
    existing = next(p for p in (folder, *folder.resolve().parents) if p.is_dir())
    lines = {
        "chosen": str(machine),
        "torch": f"{torch.__version__}, torchvision {metadata.version('torchvision')}",
        "processor": f"{device.cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, bf16 in hardware: {_yes(device.has_bf16('cpu'))}",
        "GPU": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
        "compiler": device.compiler() or "none: views are computed in PyTorch, several times more slowly (install g++)",
        "runs_dir": f"{folder}, {shutil.disk_usage(existing).free / 2**30:.0f} GiB free",
        "Fashion-MNIST": _yes(DEBIAN.is_dir(), "not installed: a first run downloads it; fashion_mini is in the package"),
    }
    for name, text in lines.items():
        print(f"{name:14} {text}")
    return 0


def _yes(so: bool, otherwise: str = "no") -> str:
    return "yes" if so else otherwise
