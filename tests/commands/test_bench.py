"""`twoviews bench`: it runs the benchmarks, saves what they print, and says what is missing. No test asserts its figures."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny import environment

from twoviews.cli import main
from twoviews.commands import bench
from twoviews.config import schema

SCRIPT = """
import sys
print("| a table |")
open(sys.argv[sys.argv.index("--json") + 1], "w").write("{}")
print(sys.argv[3:])
sys.exit({code})
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scripts that take no time; the second one fails. Returns the folder for runs."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in bench.ALL:
        (folder / f"{name}.py").write_text(SCRIPT.replace("{code}", str(int(name == bench.ALL[1]))))
    monkeypatch.setattr(bench, "SCRIPTS", folder)
    monkeypatch.setattr(bench, "PEERS", ("yaml",))
    return tmp_path / "runs"


def test_each_benchmark_runs_and_its_tables_are_saved(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"what='{bench.ALL[0]}, {bench.ALL[2]}'", "small=true", f"runs_dir={scripts}"]) == 0
    printed = capsys.readouterr().out
    (folder,) = scripts.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == sorted([f"{bench.ALL[0]}.json", f"{bench.ALL[2]}.json", "tables.md"])
    saved = (folder / "tables.md").read_text()
    assert saved in printed
    assert saved.count("| a table |") == saved.count("['--small']") == 2
    assert f"## {bench.ALL[2]}" in saved


def test_a_benchmark_that_fails_does_not_stop_the_others_and_is_named(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"runs_dir={scripts}"]) == 1
    out, err = capsys.readouterr()
    assert out.count("| a table |") == len(bench.ALL)
    assert f"bench: {bench.ALL[1]} failed" in err


def test_on_a_gpu_only_the_epoch_is_measured(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PEERS", ("nosuchpeer",))  # none of them is needed
    monkeypatch.setattr(bench.device, "choose", lambda **_: None)
    (bench.SCRIPTS / "epoch.py").write_text(SCRIPT.replace("{code}", "0"))
    assert main(["bench", "device=cuda", f"runs_dir={scripts}"]) == 0
    (folder,) = scripts.iterdir()
    assert "['--device', 'cuda']" in (folder / "tables.md").read_text()
    assert [path.name for path in folder.glob("*.json")] == ["epoch.json"]


def test_only_the_job_gets_the_data(scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "what='views,job'", f"data_dir={tmp_path}", f"runs_dir={scripts}"]) == 0
    assert capsys.readouterr().out.count(f"['--data-dir', '{tmp_path}']") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["what=job", "data_dir=nowhere"], "data_dir=nowhere: no such file or folder"),
        (["what=views", "data_dir=."], "only what=job (or all) reads data"),
        (["threads=1"], "threads=1: bench has no key 'threads': it is a key of pretrain, evaluate, embed, report, doctor"),
        (["device=cuda"], "device=cuda: this machine has none"),
        (["device=cuda", "what=steps"], "on a GPU only what=epoch is measured"),
        (["device=mps", "what=epoch"], "on a GPU only what=epoch is measured"),
    ],
)
def test_values_that_no_benchmark_takes_are_refused(
    scripts: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", *words, f"runs_dir={scripts}"]) == 2
    assert says in capsys.readouterr().err
    assert not scripts.exists()


def test_missing_tools_and_benchmarks_are_named(
    scripts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "PEERS", ("yaml", "nosuchpeer"))
    assert main(["bench"]) == 2
    assert "nosuchpeer not installed: pip install" in capsys.readouterr().err
    monkeypatch.setattr(bench, "SCRIPTS", tmp_path / "nowhere")
    assert main(["bench"]) == 2
    assert "part of the checkout" in capsys.readouterr().err
    assert not scripts.exists()


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module that the benchmarks share."""
    monkeypatch.syspath_prepend(str(bench.SCRIPTS))
    return importlib.import_module("measure")


def test_contenders_take_turns_and_are_compared_turn_by_turn(measure: ModuleType) -> None:
    order: list[str] = []
    seconds, results = measure.in_turn({"ours": lambda: order.append("ours"), "theirs": lambda: order.append("theirs") or len(order)}, 3)
    assert order == ["ours", "theirs"] * 3
    assert results == {"ours": None, "theirs": 6}
    assert [len(seconds[name]) for name in ("ours", "theirs")] == [3, 3]
    assert measure.times([2.0, 20.0, 9.0], [1.0, 10.0, 3.0]) == 2.0  # not 9 / 3, the medians' ratio
    assert measure.median_and_range([1.0, 3.0, 2.0]) == "2.00 (1.00-3.00)"
    assert measure.median_and_range([2.0], ".1f") == "2.0"


def test_peak_memory_is_measured_and_reset(measure: ModuleType) -> None:
    code = """
from measure import peak_gib
before = peak_gib(reset=True)
held = bytearray(2**28)
held[::4096] = b"x" * len(held[::4096])
seen = peak_gib()
del held
print(seen - before, peak_gib(reset=True) - before)
"""
    # its own process: here, memory that earlier tests freed would be used first
    done = subprocess.run([sys.executable, "-c", code], cwd=bench.SCRIPTS, capture_output=True, text=True, check=True)
    seen, left = map(float, done.stdout.split())
    assert seen > 0.24
    assert left < 0.1 or not Path("/proc/self/clear_refs").exists()


def test_every_benchmark_exists_and_starts(tmp_path: Path) -> None:
    names = [*bench.ALL, "epoch"]
    assert set(schema.RULES["what"].choices) == {"all", *names}
    script = """
import runpy, sys
sys.path.insert(0, ".")
for name in sys.argv[1:]:
    sys.argv = [f"{name}.py", "--help"]
    try:
        runpy.run_path(f"{name}.py", run_name="__main__")
    except SystemExit as left:
        assert left.code == 0, name
    print(f"end of {name}")
"""
    # one process for all of them, because each imports torch
    command = [sys.executable, "-c", script, *names]
    done = subprocess.run(command, cwd=bench.SCRIPTS, env=environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in names:
        text, _, rest = done.stdout.partition(f"end of {name}\n")
        assert "--json" in text, name
        assert "--small" in text, name
        done.stdout = rest
