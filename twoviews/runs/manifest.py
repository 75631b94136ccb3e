"""The manifest: command, git commit, versions and machine of a run."""

import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any


def manifest(**more: Any) -> dict[str, Any]:
    """Return command, git commit, versions and machine, and whatever the caller adds."""
    return {
        "command": _command(sys.argv, sys.orig_argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("twoviews", "torch", "torchvision", "numpy")},
        "system": platform.platform(),
        **more,
    }


def _version(name: str) -> str:
    """Return the version of an installed package; `not installed` for a copy of the source that is only on Python's path."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _command(argv: list[str], typed: list[str]) -> str:
    """Return the command without the interpreter and the program's folder: `twoviews pretrain recipe=demo`.

    Args:
        argv: `sys.argv`; its first word is the program, or `__main__.py` of the package under `python -m`.
        typed: `sys.orig_argv`, which ends with the words typed after the program; a sweep changes only `argv`.
    """
    program = Path(argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name.split()[0] if program.name else "python"
    here = [i for i, word in enumerate(typed) if i and Path(word).name in (name, program.name, f"-m{name}")]
    command = ["python", name] if name.endswith(".py") else [name]
    return shlex.join([*command, *typed[here[0] + 1 :]] if here else command)


def _commit() -> str | None:
    """Return the git commit of the checkout, with `+` if tracked files differ; None outside a checkout."""
    package = Path(__file__).parent.parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != package.parent.resolve():  # installed inside another repository
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
