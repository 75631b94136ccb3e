"""`twoviews bench`: run the benchmarks of the checkout, one after another, each in its own process."""

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from twoviews import device
from twoviews.config import Config

SCRIPTS = Path(__file__).parent.parent.parent / "benchmarks"
ALL = ("views", "evaluation", "ntxent", "startup", "job", "steps", "methods", "embed", "scaling")
PEERS = ("kornia", "lightly", "sklearn")


def run(cfg: Config) -> int:
    """Print the tables of each benchmark, and save them with their figures as JSON."""
    if not SCRIPTS.is_dir():
        raise ValueError("bench: the benchmarks are part of the checkout, not of the installed package: git clone it, then make bench")
    gpu = cfg.device == "cuda"
    asked = ("epoch",) if gpu else ALL  # the comparisons with other tools run on the processor
    names = tuple(dict.fromkeys(n for word in cfg.what.split(",") for n in (asked if word.strip() == "all" else (word.strip(),))))
    if cfg.device == "mps" or (gpu and names != ("epoch",)):
        raise ValueError(f"bench device={cfg.device} what={cfg.what}: on a GPU only what=epoch is measured, with device=cuda")
    if gpu:
        device.choose(device="cuda", threads=None, precision="auto", compile="auto")  # an error if there is no GPU
    if "job" in names and cfg.data_dir and not Path(cfg.data_dir).exists():
        raise ValueError(f"data_dir={cfg.data_dir}: no such file or folder: expected CIFAR-10, or null for generated images")
    if cfg.data_dir and "job" not in names:
        raise ValueError(f"data_dir={cfg.data_dir}: only what=job (or all) reads data")
    if missing := [name for name in PEERS if names != ("epoch",) and find_spec(name) is None]:
        raise ValueError(f"bench: {', '.join(missing)} not installed: pip install 'twoviews[report,bench]', or make bench")
    folder = Path(cfg.runs_dir) / f"bench-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True)
    failed = []
    began = time.monotonic()
    with open(folder / "tables.md", "w", encoding="utf-8") as tables:
        for name in names:
            words = [sys.executable, str(SCRIPTS / f"{name}.py"), "--json", str(folder / f"{name}.json"), *["--small"] * cfg.small]
            words += ["--device", cfg.device] * (name == "epoch")
            words += ["--data-dir", str(cfg.data_dir)] if name == "job" and cfg.data_dir else []
            _print(f"\n## {name}\n\n", tables)
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    _print(line, tables)
            failed += [name] * (process.returncode != 0)
    print(f"\n{(time.monotonic() - began) / 60:.1f} min; tables and figures: {folder}")
    if failed:
        raise RuntimeError(f"bench: {', '.join(failed)} failed: see its messages above")
    return 0


def _print(text: str, tables: TextIO) -> None:
    print(text, end="", flush=True)
    print(text, end="", flush=True, file=tables)
