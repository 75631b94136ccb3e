"""What README.md says can be typed and is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twoviews import config, load_backbone, rules, seeds
from twoviews.build import SHIPPED
from twoviews.cli import main
from twoviews.commands import report

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.M | re.S)


def lines(program: str) -> list[list[str]]:
    """The words of every command line of a program in the bash blocks, comments off, continued lines joined."""
    joined = "\n".join(blocks("bash")).replace("\\\n", " ")
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in joined.splitlines()]
    return [words[1:] for words in found if words and words[0] == program]


def accept(words: list[str]) -> None:
    """Raise ValueError, as the command line does, if a command would be refused."""
    if not words or words[0] in ("--help", "--version"):
        return
    verb, rest = words[0], words[1:]
    if verb not in config.VERBS:
        raise ValueError(f"{verb}: no such verb")
    if verb == "runs" and rest and rest[0] in rules.RULES["view"].choices:
        rest = [f"view={rest[0]}", *rest[1:]]
    flags = [word for word in rest if word in config.FLAGS]
    config.check(verb, [word for word in rest if word not in flags], sweep="--multirun" in flags)
    if not flags:
        config.load(verb, rest)


def test_the_readme_shows_the_main_verbs() -> None:
    verbs = {words[0] for words in lines("twoviews") if words}
    assert {"pretrain", "evaluate", "runs"} <= verbs


def test_k1_every_command_of_the_readme_is_accepted() -> None:
    refused = []
    for words in lines("twoviews"):
        try:
            accept(words)
        except ValueError as error:
            refused.append(str(error))
    assert refused == []
    assert lines("twoviews")


def test_k1_every_command_of_the_readme_runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, one after another, but on 320 images and for two steps."""
    tree, random = tmp_path / "tree", np.random.default_rng(0)
    for split, each in (("train", 32), ("test", 10)):
        for name in ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"):
            (tree / split / name).mkdir(parents=True)
            for i in range(each):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(tree / split / name / f"{i}.png")
    monkeypatch.setattr(report, "write", lambda folder, parts: None)
    shown = [words for words in lines("twoviews") if words[0] in ("pretrain", "evaluate", "runs", "report", "doctor")]
    assert len(shown) > 10
    for verb, *rest in shown:
        cifar = any(word.startswith(("recipe=cifar", "recipe=moco", "recipe=supervised")) for word in rest)
        more = {"device": "cpu", "threads": "1", "compile": "false", "runs_dir": str(tmp_path / "runs"), "max_steps": "2"}
        if verb == "pretrain" and not any(word.startswith("resume=") for word in rest):
            more |= {"batch_size": "32", "data_dir": str(tree if cifar else data)} | ({} if cifar else {"dataset": "fashion_mnist"})
            more |= {"queue_size": "64"} if "recipe=moco_thin" in rest else {}
        kept = [word for word in rest if word.partition("=")[0] not in more]
        assert main([verb, *kept, *(f"{key}={value}" for key, value in more.items())]) == 0, [verb, *rest]
    assert len(list((tmp_path / "runs").iterdir())) >= 8


def test_k1_every_command_of_the_seeds_is_shown_and_accepted() -> None:
    shown = lines("python")
    assert {words[0] for words in shown} == set(seeds.SCRIPTS)
    for script, *rest in shown:
        verb, words, typed = seeds.words(ROOT / script, rest)
        config.load(verb, words, typed)


def test_the_seeds_own_readmes_commands_are_among_them() -> None:
    theirs = [
        "simclr.py backbone=resnet18",
        "simclr_lin.py backbone=resnet18",
        "moco.py backbone=resnet18 batch_size=256 moco_k=4096 moco_t=0.2",
    ]
    theirs += ["simclr_lin.py backbone=resnet18 batch_size=256", "simclr-cifar10.py"]
    assert [shlex.join(words) for words in lines("python")] == theirs


def test_a_command_with_a_typo_would_be_seen() -> None:
    for words in (["pretrain", "recipe=nosuch"], ["pretrain", "epoch=1"], ["train"], ["pretrain", "seed=0,1"]):
        with pytest.raises(ValueError, match=r"\w"):
            accept(words)


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = {word for words in lines("make") for word in words if "=" not in word and not word.startswith("-")}
    assert named
    assert named <= targets


def test_the_nets_that_come_along_are_what_the_readme_says_they_are() -> None:
    (snippet,) = [text for text in blocks("python") if "fashion_mnist-thin32" in text]
    here: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), here)
    assert here["accuracy"][10] > 0.85, "83.1 by raw pixels"
    assert len(SHIPPED) == 3
    for name, path in SHIPPED.items():
        assert f"`{name}`" in TEXT or f"`{name.split('-')[0]}-`" in TEXT, name
        assert path.stat().st_size < 2**20
        assert load_backbone(name).mean.shape == (1, 1, 1)


def tree() -> tuple[set[str], set[str]]:
    """Paths that the tree in the README names: files and folders, as its indentation nests them."""
    (block,) = [text for text in blocks("text") if re.search(r"^twoviews/", text, flags=re.M)]
    files: set[str] = set()
    stack: list[tuple[int, str]] = []
    for line in block.splitlines():
        # box drawing characters count as indentation; two or more spaces, or a '#', part the names from what is said of them
        indented = re.sub(r"[│├└─]", " ", line)
        stripped = indented.strip()
        if not stripped:
            continue
        depth = len(indented) - len(indented.lstrip())
        while stack and stack[-1][0] >= depth:
            stack.pop()
        parent = stack[-1][1] if stack else ""
        names = re.split(r"\s{2,}|\s#", stripped)[0].split()
        for name in names:
            files.add(parent + name)
        if len(names) == 1 and names[0].endswith("/"):
            stack.append((depth, parent + names[0]))
            said = stripped.removeprefix(names[0])  # what is said of a folder names what lies in it
            files |= {parent + names[0] + name for name in re.findall(r"(?<![\w/.])(?:\w+/|[\w-]+\.(?:py|yaml|html))(?!\w)", said)}
    return {f for f in files if not f.endswith("/")}, {f for f in files if f.endswith("/")}


def test_the_tree_names_only_what_exists() -> None:
    files, folders = tree()
    assert files
    assert [name for name in sorted(files) if not (ROOT / name).is_file()] == []
    assert [name for name in sorted(folders) if not (ROOT / name).is_dir()] == []


def test_the_tree_names_every_module() -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "twoviews").rglob("*.py") if not path.name.startswith("__")}
    assert modules - tree()[0] == set()


def test_links_to_local_files_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", TEXT) + re.findall(r"(?:src|href)=\"([^\"]+)\"", TEXT)
    local = {link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link)} - {""}
    assert [link for link in sorted(local) if not (ROOT / link).exists()] == []
