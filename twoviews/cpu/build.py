"""Compile the C++ files of this folder once per machine, and load them.

torch.utils.cpp_extension does not fit here: it needs ninja and setuptools at run time, its cache does not tell
processors apart (a home folder shared by two kinds of machine gives illegal instructions), and a build that was killed
leaves a lock file for which the next one waits forever.
"""

import ctypes
import functools
import hashlib
import os
import platform
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from twoviews.device import compiler, cpu_features, cpu_name
from twoviews.runs.files import cache_file, write_atomic

# Loops become vector code only where a minimum may ignore NaN and signed zeros and no operation can trap. No view
# is NaN or infinite, and `batchnorm.cpp` detects those by their bits. Not -ffast-math, which includes all of
# these: in a library it would flush small numbers to zero in the whole process.
FLAGS = [
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp-simd", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only"),
]
OPENMP = "-fopenmp"  # torch's own threads; a second pool of threads would compete with them for the cores

Signature = dict[str, list[Any]]  # of each function: the types of its arguments


def load(source: str, signature: Signature) -> ctypes.CDLL | None:
    """Return a compiled library, or None where it cannot be compiled.

    A line is printed in the second case, unless there is no compiler at all. The first call on a machine compiles; later ones
    load the file. Its name has a hash of source, flags, compiler, torch and processor, so that different machines can
    share a cache folder.

    Args:
        source: a file in this folder.
        signature: argument types of its exported functions, all of which return an int.
    """
    library = _library(source)
    for name, arguments in signature.items() if library is not None else ():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    return library


@functools.cache
def _library(source: str) -> ctypes.CDLL | None:
    cxx = compiler()
    if cxx is None:
        return None
    path = Path(__file__).parent / source
    command = [cxx, *FLAGS]
    if platform.system() == "Linux":  # elsewhere processors cannot be told apart well enough to share a cache
        command.append("-mcpu=native" if platform.machine() == "aarch64" else "-march=native")
    try:
        version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
        machine = [platform.platform(), cpu_name(), cpu_features()]
        content = [*command, OPENMP, version, torch.__version__, *machine, path.read_text(encoding="utf-8")]
        key = hashlib.sha256("\0".join(content).encode()).hexdigest()
        cached = cache_file(f"{path.stem}-{key[:24]}.so")
        if not cached.is_file():
            print(f"compiling {path.name} for this machine, once", flush=True)
            _compile([*command, str(path)], cached)
        _refuse_foreign(cached)
        return ctypes.CDLL(str(cached))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: a file of another user
        reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        print(f"{path.name} could not be compiled or loaded ({' '.join(reason.split())[:200]}): using slower PyTorch code")
        return None


def _refuse_foreign(library: Path) -> None:
    """Refuse to load a file that another user could have written: loading a library runs it."""
    for path in (library, library.parent):
        status = path.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
            raise RuntimeError(f"{path} can be written by another user: set XDG_CACHE_HOME to another cache folder")


def _compile(command: list[str], target: Path) -> None:
    """Compile to a temporary folder and move the result into place atomically; without OpenMP where it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "library.so"
        run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=300)
        if run([*command, OPENMP, "-o", str(output)]).returncode:
            run([*command, "-o", str(output)], check=True)
            print(f"{command[0]} has no OpenMP: the compiled code uses one thread", flush=True)
        write_atomic(target, output.read_bytes())
