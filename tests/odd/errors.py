"""Errors are true and one line, with file and key: YAML files as people save them, permissions, streams that cannot print."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from pathlib import Path

import pytest
import tiny as small
import torch

from odd.odd import SIZE, WORDS, Odd
from twoviews import build, config, pretrained, runs
from twoviews.cli import main, script
from twoviews.config import files
from twoviews.config.schema import CONFIG_DIR, RULES
from twoviews.runs import lock
from twoviews.runs.find import folders

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def _recipes(odd: Odd) -> Iterator[Path]:
    """Use a copy of the YAML files, and yield the file of the recipe `simclr` in it."""
    copy = odd.root / "config"
    if not copy.exists():
        shutil.copytree(CONFIG_DIR, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CONFIG_DIR", copy)
        yield copy / "recipes/simclr.yaml"


def a_broken_recipe_is_named_with_its_line_and_what_to_do(odd: Odd) -> None:
    for old, new, says in (
        ("epochs: 1000", "epochs:\t1000\n\tseed: 1", r", line \d+: not YAML \(.*\): indent with spaces, not with tabs$"),
        ("epochs: 1000", "epochs: 1000\n   seed: 1", r", line \d+: not YAML \("),
        ("epochs: 1000", "epochs: 1000\nepochs: 10", r", line \d+: not YAML \(found duplicate key epochs\)$"),
        ("epochs: 1000", "epoch: 1000", r": epoch: RULES in config/schema.py has no rule for this key: did you mean epochs\?$"),
        ("epochs: 1000", "lr: 1000", r": lr: RULES in config/schema.py has no rule for this key: type learning_rate="),
        ("epochs: 1000", "epochs: many", r": epochs is 'many', expected an integer in \[1, 100000\]$"),
        ("epochs: 1000", "epochs: ${oc.env:HOME}", r": epochs is '\$\{oc.env:HOME\}', expected an integer"),
        ("epochs: 1000", "epochs: !!python/object/apply:os.getcwd []", r", line \d+: not YAML \(could not determine a constructor"),
        ("recipe: simclr", "recipe: simclr2", r": recipe is 'simclr2', expected the file's own name, simclr$"),
        ("method: simclr", "# no method", r": does not set method, expected "),
        ("recipe: simclr", "defaults: [simclr]\nrecipe: simclr", r": defaults: expected a list of other recipes"),
        ("recipe: simclr", "defaults: [nosuch]\nrecipe: simclr", r"nosuch.yaml: no such file$"),
    ):
        with _recipes(odd) as file:
            text = (CONFIG_DIR / "recipes/simclr.yaml").read_text()
            assert text.count(f"\n{old}\n") == 1, old
            file.write_text(text.replace(f"\n{old}\n", f"\n{new}\n"))
            said = odd.refused("pretrain", "recipe=simclr").rstrip("\n")
            assert re.search(says, said), said
            assert str(file.parent) in said
            assert odd.said(lambda: main(["pretrain", "recipe=cifar_thin", "--cfg", "job"]))[0] == 0, "other recipes work"
            assert odd.said(lambda: main(["pretrain", "--help"]))[0] == 0


def a_recipe_in_another_encoding_is_read_or_refused_with_its_line(odd: Odd) -> None:
    text = (CONFIG_DIR / "recipes/simclr.yaml").read_text().replace("epochs: 1000", "epochs: 77  # época")
    for encoding, works in (("utf-8", True), ("utf-8-sig", True), ("utf-16", True), ("latin-1", False), ("cp1252", False)):
        with _recipes(odd) as file:
            file.write_bytes(text.replace("\n", "\r\n").encode(encoding))
            code, out, err = odd.said(lambda: main(["pretrain", "recipe=simclr", "--cfg", "job"]))
            assert (code == 0) == works, encoding
            assert "epochs: 77\n" in out or re.search(r"simclr.yaml, line \d+: not UTF-8 text: save the file in UTF-8\n$", err)


def an_empty_recipe_holds_no_keys(odd: Odd) -> None:
    for content in ("", "# nothing\n", "- a\n- b\n", "\0\0"):
        with _recipes(odd) as file:
            file.write_text(content)
            assert re.search(r"simclr.yaml: (holds no keys|not YAML)", odd.refused("pretrain", "recipe=simclr"))


def a_recipe_that_is_edited_between_two_calls_is_read_again(odd: Odd) -> None:
    with _recipes(odd) as file:
        assert config.load("pretrain", ["recipe=simclr"]).epochs == 1000
        file.write_text(file.read_text().replace("epochs: 1000", "epochs: 1001"))
        assert config.load("pretrain", ["recipe=simclr"]).epochs == 1001


def the_yaml_file_of_a_reference_project_may_be_saved_by_any_editor(odd: Odd) -> None:
    shutil.copy(ROOT / "simclr.py", odd.root)
    text = (ROOT / "simclr_config.yml").read_text()
    file = odd.root / "simclr_config.yml"
    for content, says in (
        (text.encode("utf-16"), None),
        (text.encode("utf-8-sig").replace(b"\n", b"\r\n"), None),
        (text.replace("# SimCLR", "# été").encode("latin-1"), "not UTF-8 text: save the file in UTF-8"),
        (text.replace("seed: 0", "seed: 0\nseed: 1").encode(), "found duplicate key seed"),
        (text.replace("seed: 0", "seed: {a: 1}").encode(), "simclr_config.yml: seed: expected None, a number"),
        (text.replace("seed: 0", "\tseed: 0").encode(), "indent with spaces, not with tabs"),
    ):
        file.write_bytes(content)
        code, out, err = odd.said(lambda: script(str(odd.root / "simclr.py"), ["--cfg", "job"]))
        assert (code, err) == (0, "") if says is None else (code == 2 and says in err and err.count("\n") == 1), err
        if says is None:
            assert "batch_size: 512\n" in out
            assert odd.said(lambda: script(str(odd.root / "simclr.py"), ["--help"]))[0] == 0


def a_method_whose_keys_the_recipe_lacks_is_refused_before_torch_is_asked(odd: Odd) -> None:
    for words in (["--cfg", "job"], []):
        code, out, err = odd.said(lambda words=words: main(["pretrain", "recipe=cifar_thin", "method=moco", *words]))
        assert (code, out) == (2, "")
        assert err == (
            "twoviews: method=moco: needs the key queue_size, which recipe=cifar_thin does not set: "
            "choose a recipe of this method: moco, moco_cifar_demo, moco_resnet18, moco_thin\n"
        )


def a_method_does_not_get_the_keys_of_another(odd: Odd) -> None:
    cfg = config.load("pretrain", ["recipe=cifar_thin", "method=supervised"])
    assert (cfg.method, "temperature" in cfg, "one_forward" in cfg) == ("supervised", False, True)
    said = odd.refused("pretrain", "method=supervised", "temperature=0.2")
    assert "has no key 'temperature': method=supervised does not use it" in said
    for name in RULES["recipe"].choices:
        own = config.load("pretrain", [f"recipe={name}"])
        assert dict(config.load("pretrain", [f"recipe={name}", f"method={own.method}"])) == dict(own)


class _Ascii(io.TextIOWrapper):
    """A stream of a program whose locale is ASCII."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", errors="strict")

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]


def a_stream_that_has_only_ascii_stops_no_command(odd: Odd) -> None:
    odd.images("été", "猫", each=20)
    stream = _Ascii()
    words = ["recipe=cifar_thin", "dataset=folder", f"data_dir={odd.data}", f"image_size={SIZE}", f"runs_dir={odd.runs / 'né'}"]
    with redirect_stdout(stream):
        code = main(["pretrain", *words, *WORDS])
    assert code == 0
    assert r"runs/n\xe9/cifar_thin" in stream.text()
    assert stream.errors == "strict", "the stream is as it was"
    (path,) = (file.parent for file in odd.runs.glob("*/*/config.yaml"))
    assert json.loads((path / "summary.json").read_text())["classes"] == ["été", "猫"]
    assert odd.said(lambda: main(["runs", f"runs_dir={path.parent}"]))[0] == 0


def a_reader_that_closes_the_pipe_is_no_error(odd: Odd) -> None:
    environment = small.environment(odd.root, PYTHONUNBUFFERED="1")
    with subprocess.Popen(
        [sys.executable, "-m", "twoviews", "pretrain", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def closed_standard_streams_are_no_error(odd: Odd) -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        command = f"{sys.executable} -m twoviews doctor --cfg job {closed}"
        assert subprocess.run(["bash", "-c", command], env=small.environment(odd.root), cwd=odd.root).returncode == 0, closed


def _fail_for(path: Path, name: str) -> None:
    if name in str(path):
        raise PermissionError(13, "Permission denied", str(path))


def a_run_folder_of_another_user_hides_no_other_run(odd: Odd) -> None:
    for name in ("a", "b", "c"):
        runs.create(odd.runs, name, f"seed: 0\nname: {name}\n")
    real = Path.stat
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "stat", lambda path, **more: [_fail_for(path, "/b-"), real(path, **more)][1])
        found, _, err = odd.said(lambda: folders(odd.runs))
    assert [path.name[0] for path in found] == ["a", "c"]
    assert re.fullmatch(r"left out: .*/b-[\w-]+: cannot be read \(Permission denied\)\n", err)


def folders_and_files_without_permission_are_named_in_one_line(odd: Odd) -> None:
    path = runs.create(odd.runs, "a", "seed: 0\n")

    def fail(target: object, *words: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    for owner, name, argv, code, says in (
        (os, "listdir", ["runs", f"runs_dir={odd.runs}"], 2, f"runs_dir={odd.runs}: cannot be read (Permission denied)"),
        (lock, "write_atomic", ["pretrain", f"resume={path}"], 1, "/.holder: Permission denied"),
        (Path, "read_text", ["report", f"run={path}"], 2, f"{path / 'config.yaml'}: cannot be read (Permission denied)"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, fail)
            result, _, err = odd.said(lambda argv=argv: main(argv))
        assert (result, err.count("\n")) == (code, 1), err
        assert says in err


def an_error_of_the_system_is_one_line_without_a_hint_to_debug(odd: Odd) -> None:
    from twoviews.commands import runs as command

    def fail(cfg: config.Config) -> None:
        raise PermissionError(13, "Permission denied", "/a/file")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "run", fail)
        assert odd.said(lambda: main(["runs"])) == (1, "", "twoviews: /a/file: Permission denied\n")


def a_run_continues_without_a_word_about_the_same_version_of_torch(odd: Odd) -> None:
    odd.images("cat", "dog", each=20)
    path, _ = odd.trained("max_steps=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "__version__", f"{metadata.version('torch')}+cu130")
        code, out, err = odd.run("pretrain", f"resume={path}", "max_steps=2")
    assert (code, err) == (0, "")
    assert "of torch" not in out


def init_takes_a_file_a_run_its_name_and_a_bundled_model(odd: Odd) -> None:
    bundled = next(iter(pretrained.BUNDLED))
    path = runs.create(odd.runs, "a", "seed: 0\n")
    for value, expected in (
        (bundled, pretrained.BUNDLED[bundled]),
        (str(pretrained.BUNDLED[bundled]), pretrained.BUNDLED[bundled]),
        (str(path), path / runs.BACKBONE),
        (path.name, odd.runs / path.name / runs.BACKBONE),
    ):
        assert build._init_file(config.load("pretrain", [f"init={value}", f"runs_dir={odd.runs}"])) == expected
    odd.images("cat", "dog", each=20)
    code, _, said = odd.run("pretrain", "init=nowhere")
    assert code == 2
    assert (
        f"init=nowhere: no such run folder, weights file or bundled model ({', '.join(pretrained.BUNDLED)}); {odd.runs} holds {path.name}"
        in said
    )
