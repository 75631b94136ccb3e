"""README.md: its commands run, its files, links and models exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pytest
import torch
from command_helpers import cut_mini
from pages import accept
from PIL import Image
from tiny import FEW_BATCH

from twoviews import config, load_backbone, runs
from twoviews.cli import main
from twoviews.config import reference, schema
from twoviews.data import READERS
from twoviews.models.resnet import build_backbone
from twoviews.pretrained import BUNDLED

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return pages.blocks(TEXT, language)


def lines(program: str) -> list[list[str]]:
    """Return the words of every command line of a program in the bash blocks."""
    return pages.lines(TEXT, program)


def test_the_readme_shows_the_main_verbs() -> None:
    verbs = {words[0] for words in lines("twoviews") if words}
    assert {"data", "pretrain", "embed", "runs"} <= verbs


def test_the_readme_has_at_most_120_lines() -> None:
    assert len(TEXT.splitlines()) <= 120


def test_k1_every_command_of_the_readme_is_accepted() -> None:
    refused = []
    for words in lines("twoviews"):
        try:
            accept(words)
        except ValueError as error:
            refused.append(str(error))
    assert refused == []
    assert lines("twoviews")


def image_tree(root: Path) -> Path:
    """Write an image folder: train and test, four classes, 12 and 5 images each."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for name in ("bird", "cat", "dog", "horse"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(root / split / name / f"{i}.png")
    return root


RUN = (
    "README.md",
    "RESULTS.md",
    *(f"docs/{name}.md" for name in ("architecture", "getting-started", "own-images", "protocols", "reliability")),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs/examples").glob("*.md"))),
)


SLOW = ("RESULTS.md", "docs/getting-started.md", "docs/examples/export.md")  # they take longest


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in RUN])
def test_k1_every_command_of_a_page_for_users_runs(
    page: str, few: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run with a small network, on 40 images, for two steps; commands that thereby become equal run once."""
    for name in ("fashion_mini", "cifar100"):
        monkeypatch.setitem(READERS, name, lambda data_dir: cut_mini())
    tree, runs_dir = image_tree(tmp_path / "tree"), tmp_path / "runs"
    verbs = ("pretrain", "data", "evaluate", "embed", "export", "runs", "report", "doctor")
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [words for program, *words in pages.commands(text) if program == "twoviews" and words[0] in verbs]
    found.sort(key=lambda words: (words[0] != "pretrain", any(word.startswith("resume=") for word in words)))  # the others need a run
    shown = [words for words in found if not {"--help", "--cfg"} & set(words)]
    if not any(words[0] == "pretrain" for words in shown):
        shown = [["pretrain", "recipe=cifar_thin"], *shown]
    backbone = "resnet18" if any("to=timm" in words for words in shown) else "thin16"  # timm has no thin networks
    done: list[list[str]] = []
    for verb, *rest in shown:
        changes = {"device": "cpu", "threads": "1", "compile": "false", "runs_dir": str(runs_dir), "max_steps": "2"}
        given = {word.partition("=")[0] for word in rest}
        if "resume" in given:
            changes["resume"] = str(runs.folders(runs_dir)[-1])
        elif verb == "pretrain":
            changes |= {"backbone": backbone, "batch_size": str(FEW_BATCH), "min_learning_rate": "0", "epochs": "1", "warmup_epochs": "0"}
            changes |= {"data_dir": str(tree)} if "dataset=folder" in rest else {"dataset": "fashion_mnist", "data_dir": str(few)}
            changes |= {"queue_size": "18", "bn_splits": "4"} if any(word.startswith("recipe=moco") for word in rest) else {}
        elif "transfer=folder" in rest or verb in ("data", "embed"):
            changes["data_dir"] = str(tree)
        if verb == "runs" and "dataset" in given:
            changes["dataset"] = "fashion_mnist"
        if "init" in given:
            changes["init"] = str(tmp_path / "checkpoint.pth")
            channels, size = (3, 96) if "image_size=96" in rest else (1, 28)
            torch.save(build_backbone(backbone, in_channels=channels, image_size=size)[0].state_dict(), changes["init"])
        if verb == "export":
            changes["export_dir"] = str(tmp_path / f"{len(done)}")
        if verb == "report" and "to" in given:
            changes["to"] = str(tmp_path / f"{len(done)}.html")
        if verb in ("data", "embed"):
            file = Path(next((word for word in rest if word.startswith("to=")), f"to=a{'.npz' if verb == 'embed' else '.png'}")[3:])
            changes["to"] = str(tmp_path / f"{len(done)}{file.suffix}")
        changes |= {"seed": "0,1"} if "--multirun" in rest else {}
        taken = {key: value for key, value in changes.items() if verb in schema.RULES[key].verbs}
        kept = [word for word in rest if word.partition("=")[0] not in taken]
        argv = [verb, *kept, *(f"{key}={value}" for key, value in taken.items())]
        if argv not in done:
            assert main(argv) == 0, [verb, *rest]
            done.append(argv)
    assert done


@pytest.mark.long
@pytest.mark.parametrize("page", sorted((ROOT / "docs/examples").glob("*.md")), ids=lambda path: path.stem)
def test_the_python_code_of_an_example_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here: dict[str, Any] = {}
    first = page.with_name("own-images.md")  # it writes the folder `photos`, which others read
    for path in dict.fromkeys((first, page)):
        for language, snippet in re.findall(r"^```(bash|python)\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.M | re.S):
            if language == "python":
                exec(compile(snippet, path.name, "exec"), here)
                continue
            for words in pages.lines(f"```bash\n{snippet}```", "twoviews"):  # those that write what the code reads
                if path == page and words[0] in ("embed", "export") and {"to=features.npz", "to=onnx"} & set(words):
                    assert main([word.replace("run=latest", "run=simclr-blood_cells-thin32") for word in words]) == 0
    if "classifier" in here:
        assert here["classifier"].score(here["cells"].test_images, here["cells"].test_labels) > 0.75
    if page.stem == "export":
        assert abs(here["h"] - here["expected"]).max() < 1e-4
    if page.stem == "own-images":
        assert len(list((tmp_path / "photos").glob("*/*.png"))) == 2000
        assert len(list((tmp_path / "photos").iterdir())) == 8


def test_k1_every_command_of_the_reference_projects_is_shown_and_accepted() -> None:
    shown = lines("python")
    assert {words[0] for words in shown} == set(reference.SCRIPTS)
    for script, *rest in shown:
        verb, words, typed = reference.translate(ROOT / script, rest)
        config.load(verb, words, typed)


def test_the_reference_projects_own_commands_are_shown_word_for_word() -> None:
    theirs = [
        "simclr.py backbone=resnet18",
        "simclr_lin.py backbone=resnet18",
        "moco.py backbone=resnet18 batch_size=256 moco_k=4096 moco_t=0.2",
    ]
    theirs += ["simclr_lin.py backbone=resnet18 batch_size=256", "simclr-cifar10.py"]
    assert [shlex.join(words) for words in lines("python")] == theirs


def test_a_command_with_a_typo_would_be_found() -> None:
    for words in (["pretrain", "recipe=nosuch"], ["pretrain", "epoch=1"], ["train"], ["pretrain", "seed=0,1"]):
        with pytest.raises(ValueError, match=r"\w"):
            accept(words)


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = {word for words in lines("make") for word in words if "=" not in word and not word.startswith("-")}
    assert named
    assert named <= targets


def test_the_bundled_models_are_what_the_readme_says_they_are() -> None:
    (snippet,) = [text for text in blocks("python") if "blood_cells-thin32" in text]
    here: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), here)
    assert here["accuracy"] > 0.80, "raw pixels reach 48 %"
    assert "one of four encoders that are bundled" in TEXT
    assert len(BUNDLED) == 4
    for name, path in BUNDLED.items():
        assert path.stat().st_size < 2**20
        assert load_backbone(name).mean.shape == ((3, 1, 1) if "blood_cells" in name else (1, 1, 1))


def test_the_file_tree_is_what_scripts_tree_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    tree = importlib.import_module("tree")
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert tree.BEGIN + tree.tree() + tree.END in page, "type: python scripts/tree.py"
    assert max(map(len, tree.tree().splitlines())) <= tree.WIDTH
    modules = {path.name for path in (ROOT / "twoviews").rglob("*.py") if not path.name.startswith("__")}
    assert modules <= {line.split()[0] for line in tree.tree().splitlines()}


@pytest.mark.parametrize("page", ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))])
def test_no_comment_stands_behind_a_command(page: str) -> None:
    """Zsh, the shell of macOS, would pass its words to the command."""
    shown = pages.blocks((ROOT / page).read_text(encoding="utf-8"), "bash")
    assert [line for text in shown for line in text.splitlines() if re.search(r"[^#\s].* #", line)] == []
