"""`twoviews bench`: the benchmarks of the checkout, one after another, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from twoviews import device
from twoviews.config import Config

SCRIPTS = Path(__file__).parent.parent.parent / "benchmarks"
ALL = ("views", "readouts", "ntxent", "startup", "job", "steps")
TAKES = ("what", "small", "device", "data_dir", "runs_dir", "debug")
PEERS = ("kornia", "lightly", "sklearn")


def run(cfg: Config) -> int:
    """The verb: prints each benchmark's tables, and keeps them with their figures as JSON."""
    if not SCRIPTS.is_dir():
        raise ValueError("bench: the benchmarks lie in the checkout, not in the installed package: git clone it, then make bench")
    if unused := [key for key in cfg.given if key not in TAKES]:
        raise ValueError(f"bench {unused[0]}={cfg[unused[0]]}: the benchmarks choose that themselves: expected {', '.join(TAKES)}")
    gpu = cfg.device == "cuda"
    asked = ("epoch",) if gpu else ALL  # beside peers only where those have one path: the processor
    names = tuple(dict.fromkeys(n for word in cfg.what.split(",") for n in (asked if word.strip() == "all" else (word.strip(),))))
    if cfg.device == "mps" or (gpu and names != ("epoch",)):
        raise ValueError(f"bench device={cfg.device} what={cfg.what}: on a GPU it is epoch that is measured, on device=cuda")
    if gpu:
        device.choose(device="cuda", threads=None, precision="auto", compile="auto")  # refuses where there is none
    if "job" in names and cfg.data_dir and not Path(cfg.data_dir).exists():
        raise ValueError(f"data_dir={cfg.data_dir}: no such file or folder: expected CIFAR-10, or null for made images")
    if cfg.data_dir and "job" not in names:
        raise ValueError(f"data_dir={cfg.data_dir}: it is the job that reads data: what=job or all")
    if missing := [name for name in PEERS if names != ("epoch",) and find_spec(name) is None]:
        raise ValueError(f"bench: {', '.join(missing)} not installed: pip install 'twoviews[report,bench]', or make bench")
    place = Path(cfg.runs_dir) / f"bench-{time.strftime('%Y%m%d-%H%M%S')}"
    place.mkdir(parents=True)
    failed = []
    began = time.monotonic()
    with open(place / "tables.md", "w", encoding="utf-8") as tables:
        for name in names:
            words = [sys.executable, str(SCRIPTS / f"{name}.py"), "--json", str(place / f"{name}.json"), *["--small"] * cfg.small]
            words += ["--device", cfg.device] * (name == "epoch")
            words += ["--data-dir", str(cfg.data_dir)] if name == "job" and cfg.data_dir else []
            _say(f"\n## {name}\n\n", tables)
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    _say(line, tables)
            failed += [name] * (process.returncode != 0)
    print(f"\n{(time.monotonic() - began) / 60:.1f} min; tables and figures: {place}")
    if failed:
        raise RuntimeError(f"bench: {', '.join(failed)} failed: what is said above says why")
    return 0


def _say(text: str, tables: TextIO) -> None:
    print(text, end="", flush=True)
    print(text, end="", flush=True, file=tables)
