"""Completion: bash offers verbs, keys and values as the command line takes them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest
from command_helpers import refused

from twoviews.cli import main
from twoviews.config import VERBS, completion
from twoviews.config.schema import RULES, keys


def offered(line: str, folder: Path) -> list[str]:
    """Return what bash offers at the end of a line."""
    (folder / "script.bash").write_text(completion.script("bash"))
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"source ./script.bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; COMP_POINT={len(line)}"
    done = subprocess.run(
        ["bash", "-c", f'{ask}; _twoviews; printf "%s\\n" "${{COMPREPLY[@]}}"'], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_offers_verbs_keys_and_values(tmp_path: Path) -> None:
    assert set(offered("twoviews ", tmp_path)) == {*VERBS, "--help", "--version"}
    assert offered("twoviews pre", tmp_path) == ["pretrain"]
    assert set(offered("twoviews embed ", tmp_path)) == {f"{key}=" for key in keys(verb="embed")} | {"--help"}
    assert offered("twoviews pretrain seed=1 bac", tmp_path) == ["background=", "backbone="]
    assert offered("twoviews pretrain backbone=thin", tmp_path) == ["thin16", "thin32", "thin64"]
    assert set(offered("twoviews pretrain recipe=", tmp_path)) == set(RULES["recipe"].choices)
    assert offered("twoviews export to=ti", tmp_path) == ["timm"]
    assert offered("twoviews pretrain data_dir=scr", tmp_path) == ["script.bash"], "files"
    assert offered("twoviews runs comp", tmp_path) == ["compare"]


def offered_by_fish(line: str, folder: Path) -> list[str]:
    (folder / "script.fish").write_text(completion.script("fish"))
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source script.fish; complete -C '{line}'"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.split()


def offered_by_zsh(line: str, folder: Path) -> list[str]:
    """Return what the function hands to zsh, which adds to the word what `compset` took away."""
    (folder / "script.zsh").write_text(completion.script("zsh"))
    words = line.split(" ")
    stand_ins = """
compdef() { : }
compset() { word=${word#*=} }
_files() { print -l -- FILES }
compadd() { local name=${@[-1]}; print -l -- ${(M)${(P)name}:#$word*} }
"""
    ask = f"{stand_ins}; source ./script.zsh; words=({' '.join(words)} ''); CURRENT={len(words)}; word='{words[-1]}'; _twoviews"
    done = subprocess.run(["zsh", "-f", "-c", ask], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("offers", [offered, *([offered_by_fish] if which("fish") else []), *([offered_by_zsh] if which("zsh") else [])])
def test_every_shell_offers_verbs_keys_and_values(offers: Callable[[str, Path], list[str]], tmp_path: Path) -> None:
    assert offers("twoviews pre", tmp_path) == ["pretrain"]
    assert offers("twoviews pretrain tempera", tmp_path) == ["temperature="]
    values = [word.removeprefix("backbone=") for word in offers("twoviews pretrain backbone=thin", tmp_path)]
    assert values == ["thin16", "thin32", "thin64"]
    assert offers("twoviews runs comp", tmp_path) == ["compare"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_command_prints_the_script_of_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "recipe=" in capsys.readouterr().out
    assert "expected bash or zsh or fish" in refused(capsys, "completion", "cmd")
