"""`twoviews bench`: that it runs what it says, keeps what it printed, and says what is missing. Its figures are not for tests."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny import environment

from twoviews import rules
from twoviews.cli import main
from twoviews.commands import bench

SCRIPT = """
import sys
print("| a table |")
open(sys.argv[sys.argv.index("--json") + 1], "w").write("{}")
print(sys.argv[3:])
sys.exit({code})
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scripts that take no time; the second one fails."""
    place = tmp_path / "benchmarks"
    place.mkdir()
    for name in bench.ALL:
        (place / f"{name}.py").write_text(SCRIPT.replace("{code}", str(int(name == bench.ALL[1]))))
    monkeypatch.setattr(bench, "SCRIPTS", place)
    monkeypatch.setattr(bench, "PEERS", ("yaml",))
    return tmp_path / "runs"


def test_each_benchmark_runs_and_what_it_says_is_kept(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"what='{bench.ALL[0]}, {bench.ALL[2]}'", "small=true", f"runs_dir={scripts}"]) == 0
    said = capsys.readouterr().out
    (place,) = scripts.iterdir()
    assert sorted(path.name for path in place.iterdir()) == sorted([f"{bench.ALL[0]}.json", f"{bench.ALL[2]}.json", "tables.md"])
    kept = (place / "tables.md").read_text()
    assert kept in said
    assert kept.count("| a table |") == kept.count("['--small']") == 2
    assert f"## {bench.ALL[2]}" in kept


def test_one_that_fails_does_not_stop_the_others_and_is_named(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"runs_dir={scripts}"]) == 1
    out, err = capsys.readouterr()
    assert out.count("| a table |") == len(bench.ALL)
    assert f"bench: {bench.ALL[1]} failed" in err


def test_on_a_gpu_it_is_the_epoch_that_is_measured_there(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PEERS", ("nosuchpeer",))  # which it needs none of
    monkeypatch.setattr(bench.device, "choose", lambda **_: None)
    (bench.SCRIPTS / "epoch.py").write_text(SCRIPT.replace("{code}", "0"))
    assert main(["bench", "device=cuda", f"runs_dir={scripts}"]) == 0
    (place,) = scripts.iterdir()
    assert "['--device', 'cuda']" in (place / "tables.md").read_text()
    assert [path.name for path in place.glob("*.json")] == ["epoch.json"]


def test_the_job_alone_is_given_the_data(scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "what='views,job'", f"data_dir={tmp_path}", f"runs_dir={scripts}"]) == 0
    assert capsys.readouterr().out.count(f"['--data-dir', '{tmp_path}']") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["what=job", "data_dir=nowhere"], "data_dir=nowhere: no such file or folder"),
        (["what=views", "data_dir=."], "it is the job that reads data"),
        (["threads=1"], "bench threads=1: the benchmarks choose that themselves: expected what, small"),
        (["device=cuda"], "device=cuda: this machine has none"),
        (["device=cuda", "what=steps"], "on a GPU it is epoch that is measured"),
        (["device=mps", "what=epoch"], "on a GPU it is epoch that is measured"),
    ],
)
def test_what_no_benchmark_takes_is_refused(
    scripts: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", *words, f"runs_dir={scripts}"]) == 2
    assert said in capsys.readouterr().err
    assert not scripts.exists()


def test_what_is_missing_is_said(
    scripts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "PEERS", ("yaml", "nosuchpeer"))
    assert main(["bench"]) == 2
    assert "nosuchpeer not installed: pip install" in capsys.readouterr().err
    monkeypatch.setattr(bench, "SCRIPTS", tmp_path / "nowhere")
    assert main(["bench"]) == 2
    assert "in the checkout" in capsys.readouterr().err
    assert not scripts.exists()


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the benchmarks share."""
    monkeypatch.syspath_prepend(str(bench.SCRIPTS))
    return importlib.import_module("measure")


def test_rivals_take_turns_and_each_turn_is_set_against_its_own(measure: ModuleType) -> None:
    order: list[str] = []
    seconds, given = measure.in_turn({"ours": lambda: order.append("ours"), "theirs": lambda: order.append("theirs") or len(order)}, 3)
    assert order == ["ours", "theirs"] * 3
    assert given == {"ours": None, "theirs": 6}
    assert [len(seconds[name]) for name in ("ours", "theirs")] == [3, 3]
    assert measure.times([2.0, 20.0, 9.0], [1.0, 10.0, 3.0]) == 2.0  # not 9 / 3, the medians' ratio
    assert measure.said([1.0, 3.0, 2.0]) == "2.00 (1.00-3.00)"
    assert measure.said([2.0], ".1f") == "2.0"


def test_peak_memory_is_seen_and_put_back(measure: ModuleType) -> None:
    code = """
from measure import peak_gib
before = peak_gib(reset=True)
held = bytearray(2**28)
held[::4096] = b"x" * len(held[::4096])
seen = peak_gib()
del held
print(seen - before, peak_gib(reset=True) - before)
"""
    # a process of its own: what others freed and kept would be taken first
    done = subprocess.run([sys.executable, "-c", code], cwd=bench.SCRIPTS, capture_output=True, text=True, check=True)
    seen, left = map(float, done.stdout.split())
    assert seen > 0.24
    assert left < 0.1 or not Path("/proc/self/clear_refs").exists()


def test_every_benchmark_is_there_and_starts(tmp_path: Path) -> None:
    assert set(rules.RULES["what"].choices) == {"all", "epoch", *bench.ALL}
    children = [
        subprocess.Popen(
            [sys.executable, str(bench.SCRIPTS / f"{name}.py"), "--help"], env=environment(tmp_path), stdout=subprocess.PIPE, text=True
        )
        for name in (*bench.ALL, "epoch")
    ]
    for child in children:
        said, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        assert "--json" in said
        assert "--small" in said
