"""Plant typical mistakes in copies of the package, one at a time: each must fail a test.

    python tests/mutants [part of a name]

This process imports the libraries once and forks a child for each mutant, in which pytest runs the mutant's tests on its copy.
A mutant is killed if a test fails. Every other end than success (no such test, an error of import, a timeout) is an error.
"""

from __future__ import annotations

import compileall
import contextlib
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch start threads, which a fork would lose
sys.path[0] = str(Path(__file__).resolve().parent.parent)  # modules of this folder, such as `data`, must not hide others

import pytest  # noqa: E402

from mutants import MUTANTS  # noqa: E402
from mutants.mutant import ROOT, Mutant, node_ids, problems  # noqa: E402

LIBRARIES = (
    *("PIL.Image", "filelock", "hydra.core.override_parser.overrides_parser", "hypothesis", "jinja2", "matplotlib.figure"),
    *("matplotlib.font_manager", "numpy", "safetensors.torch", "sklearn.linear_model", "torch", "torch.testing", "torchvision", "yaml"),
)
CHILDREN = 2  # at a time
LIMIT = 300.0  # seconds of one child
FOLDERS = ("twoviews", "tests", "docs", "examples", "benchmarks", "scripts")


@dataclass
class Child:
    """A forked process that runs tests on a mutant, or on the package as it is.

    Args:
        mutant: None: the package as it is.
        tests: arguments of pytest.
        folder: its files: `copy` of the project, `log` of its output, and `tmp` of pytest.
    """

    mutant: Mutant | None
    tests: list[str]
    folder: Path
    pid: int = 0
    began: float = 0.0
    seconds: float = 0.0
    code: int | None = None  # of pytest; None: it took too long

    @property
    def output(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def verdict(self) -> str:
        """Return `killed`, `SURVIVES` or an error."""
        if self.code is None:
            return f"ERROR: no result after {LIMIT:.0f} s"
        return {0: "SURVIVES", 1: "killed"}.get(self.code, f"ERROR: pytest's exit code is {self.code}")


def with_libraries(libraries: Path) -> ModuleType:
    """Return a plugin of pytest that puts compiled libraries into the cache of `conftest.py`. A changed source is compiled again."""

    @pytest.fixture(scope="session", autouse=True)
    def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
        shutil.copytree(libraries, tmp_path_factory.getbasetemp() / "cache/twoviews")

    plugin = ModuleType("compiled")
    plugin.compiled = compiled  # type: ignore[attr-defined]
    return plugin


def fork(folder: Path, work: Callable[[], int]) -> int:
    """Start a child that works in `folder / "copy"` and exits with a code; return its process id. Its output goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()  # a group of its own, which can be killed with all that the tests started
        signal.signal(signal.SIGINT, signal.default_int_handler)
        handle = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, handle), (2, handle)):
            os.dup2(source, number)
        os.chdir(folder / "copy")
        sys.path[0] = os.environ["PYTHONPATH"] = str(Path.cwd())
        sys.argv = ["pytest"]
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_tests(folder: Path, tests: Sequence[str], libraries: Path) -> int:
    """Run pytest and return its exit code."""
    words = f"-x -q --no-header --tb=short -p no:cacheprovider -p no:xdist --rootdir={folder}/copy --basetemp={folder}/tmp".split()
    ignored = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins were imported before the fork
    return int(pytest.main([*words, *ignored, *tests], plugins=[with_libraries(libraries)]))


def compile_libraries(target: Path) -> int:
    """Compile the C++ sources of the package as it is."""
    os.environ["XDG_CACHE_HOME"] = str(target.parent)
    from twoviews.cpu import batchnorm, views

    target.mkdir(exist_ok=True)
    return 0 if all((views.library(), batchnorm.library())) else 1


def run(children: Sequence[Child], original: Path, libraries: Path) -> Iterator[Child]:
    """Run children, two at a time, each on a copy of hard links, and yield each when it has ended."""
    waiting, running = list(children), list[Child]()
    try:
        while waiting or running:
            while waiting and len(running) < CHILDREN:
                child = waiting.pop(0)
                shutil.copytree(original, child.folder / "copy", copy_function=os.link)
                if child.mutant is not None:
                    child.mutant.plant(child.folder / "copy/twoviews")
                child.began = time.monotonic()
                child.pid = fork(child.folder, lambda child=child: run_tests(child.folder, child.tests, libraries))  # type: ignore[misc]
                running.append(child)
            time.sleep(0.02)
            for child in list(running):
                child.seconds = time.monotonic() - child.began
                ended, status = os.waitpid(child.pid, os.WNOHANG)
                if not ended and child.seconds < LIMIT:
                    continue
                if ended:
                    child.code = os.waitstatus_to_exitcode(status)
                running.remove(child)
                stop(child, ended=bool(ended))
                yield child
    finally:
        for child in running:
            stop(child, ended=False)


def stop(child: Child, *, ended: bool) -> None:
    """End what a child started, and remove its folder."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    if not ended:
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
    for name in ("copy", "tmp"):
        shutil.rmtree(child.folder / name, ignore_errors=True)


def main(part: str = "") -> int:
    """Run the tests on the package as it is, then on every mutant whose name contains `part`."""
    wanted = [one for one in MUTANTS if part in one.name]
    if not wanted or (wrong := problems(wanted)):
        print("\n".join(wrong) if wanted else f"no mutant has {part!r} in its name")
        return 1
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in LIBRARIES:
            __import__(name)
    gc.collect()
    gc.freeze()  # pytest collects garbage; a child should not walk through torch each time
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        scratch = Path(name)
        original, libraries = scratch / "original/copy", scratch / "cache/twoviews"
        _copy(original)
        libraries.mkdir(parents=True)
        if os.waitpid(fork(scratch / "original", lambda: compile_libraries(libraries)), 0)[1]:
            print(f"the C++ sources cannot be compiled:\n{(scratch / 'original/log').read_text()}")
            return 1
        nodes = {node for one in wanted for node in node_ids(one)}
        files = sorted({node.partition("::")[0] for node in nodes})
        print(f"{len(wanted)} mutants; first the tests of {len(files)} files on the package as it is", flush=True)
        tests = [[file] if file in nodes else sorted(node for node in nodes if node.startswith(f"{file}::")) for file in files]
        for child in run([Child(None, one, scratch / f"file{i}") for i, one in enumerate(tests)], original, libraries):
            if child.code != 0:
                print(f"{child.output[-3000:]}\nfails without any mutant: {' '.join(child.tests)}")
                return 1
        alive = _try_all([Child(one, node_ids(one), scratch / f"mutant{i}") for i, one in enumerate(wanted)], original, libraries)
    if alive:
        print("\n| mutant | file | tests | result |\n|:--|:--|:--|:--|")
        print("\n".join(f"| {c.mutant.name} | {c.mutant.file} | {c.mutant.tests} | {c.verdict()} |" for c in alive if c.mutant))
    print(f"\n{len(wanted) - len(alive)} of {len(wanted)} mutants killed in {(time.monotonic() - began) / 60:.1f} min")
    return 1 if alive else 0


def _copy(target: Path) -> None:
    """Copy the project as it is now, so that edits during the run do not matter, with compiled modules."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, target / path.name)
    compileall.compile_dir(target / "twoviews", quiet=1)


def _try_all(children: Sequence[Child], original: Path, libraries: Path) -> list[Child]:
    """Run all mutants, print a line for each, and return those that were not killed."""
    start, alive = time.monotonic(), []
    for done, child in enumerate(run(children, original, libraries), start=1):
        assert child.mutant is not None
        left = (time.monotonic() - start) / done * (len(children) - done)
        print(
            f"{done:3}/{len(children)}, {left / 60:3.0f} min left: {child.verdict():8} {child.mutant.name}, {child.seconds:.0f} s",
            flush=True,
        )
        if child.verdict() != "killed":
            alive.append(child)
            if child.code != 0:
                print(child.output[-1500:], flush=True)
    return alive


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:2]))
    except KeyboardInterrupt:
        sys.exit(130)
