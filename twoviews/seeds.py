"""The seeds' own commands in their own words: `python simclr.py moco_k=4096` to a verb of ours. `NAMES` maps the words."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from twoviews.config import check, word
from twoviews.rules import RULES

NAMES = {
    "projection_dim": "out_dim",
    "moco_dim": "out_dim",
    "moco_k": "queue_size",
    "moco_m": "ema_decay",
    "moco_t": "temperature",
    "finetune_epochs": "probe_epochs",
    "finetune_learning_rate": "probe_learning_rate",
    "finetune_momentum": "probe_momentum",
    "finetune_weight_decay": "probe_weight_decay",
}
WORKERS = "workers"  # of the seeds' data loaders: the images lie in memory here


@dataclass(frozen=True)
class Script:
    """One command of a seed.

    Args:
        verb: of ours.
        words: that stand for it.
        config: the file beside it that holds its keys; None: it has none, as the single-file seed.
        unread: keys of that file which it does not read.
        resnet50: what the seed changes for that backbone, or would have to.
    """

    verb: str
    words: tuple[str, ...]
    config: str | None
    unread: tuple[str, ...] = ()
    resnet50: tuple[str, ...] = ()


TRAINING = ("epochs", "log_interval", "projection_dim", "optimizer", "learning_rate", "min_learning_rate", "momentum", "weight_decay")
READING = ("finetune_epochs", "finetune_learning_rate", "finetune_momentum", "finetune_weight_decay", "load_epoch")
SCRIPTS = {
    "simclr.py": Script("pretrain", ("recipe=simclr", "table=first_seed"), "simclr_config.yml", READING),
    "simclr_lin.py": Script("evaluate", ("probes=linear_sgd", "table=first_seed"), "simclr_config.yml", (*TRAINING, "temperature")),
    "moco.py": Script("pretrain", ("recipe=moco", "table=first_seed"), "moco_config.yml", READING, ("hidden_dims=[2048]",)),
    "simclr-cifar10.py": Script(
        "pretrain",
        (
            "recipe=simclr_cifar10",
            "probes='knn,knn_euclidean,linear_precomp,linear_augm'",
            "solver=adam",
            "table=second_seed",
        ),
        None,
        (),
        ("batch_size=512",),
    ),
}


def words(script: Path, argv: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """A seed's command line as one of ours.

    Args:
        script: the file that was run; its configuration lies beside it.
        argv: `key=value` words in the seed's names or ours, and Hydra's flags.

    Returns:
        (verb, our words, what the user or the file says in place of each): typed words first, then the file's, then the script's.

    Raises:
        ValueError: if a key does not exist or the file cannot be read.
    """
    about = SCRIPTS[script.name]
    stored = _read(script.with_name(about.config)) if about.config else {}
    known = [*stored, *RULES, WORKERS, *NAMES]
    said: dict[str, tuple[str, str]] = {}  # our key: our word, its word
    ours: list[str] = []
    typed: list[str] = []
    for raw in argv:
        key, equals, value = raw.partition("=")
        if not equals or key[:1] in "+~-":
            ours.append(raw)  # a flag, or a form that is refused below with the words for it
            typed.append(raw)
            continue
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
            raise ValueError(f"{raw}: {script.name} has no key {key!r}{f': did you mean {near[0]}?' if near else ''}")
        if key == WORKERS:
            print("workers: not needed: the images lie in memory and views are made on the device")
        elif key in about.unread:
            reader = "evaluate" if about.verb == "pretrain" else "pretrain"  # wrong values are refused all the same
            check(reader, [f"{NAMES.get(key, key)}={value}"], sweep=False, typed=[raw])
            print(f"{key}: {script.name} does not read it")
        else:
            ours.append(f"{NAMES.get(key, key)}={value}")
            typed.append(raw)
    given = {w.partition("=")[0]: w.partition("=")[2] for w in ours}
    unread = (WORKERS, *about.unread, *(["seed"] if about.verb == "evaluate" else []))  # a read-out has the seed of its run, unless typed
    for key, kept in stored.items():
        if key not in unread:
            name = NAMES.get(key, key)
            said[name] = (word(name, kept), f"{about.config}: {word(key, kept)}")
    if about.verb == "evaluate" and "run" in given:  # named: it need not be like anything
        for key in ("dataset", "backbone", "batch_size"):
            said.pop(key, None)
    if given.get("backbone", stored.get("backbone")) == "resnet50":
        said |= {w.partition("=")[0]: (w, w) for w in about.resnet50}
    said |= {w.partition("=")[0]: (w, w) for w in about.words}
    if "probes" in given:
        said.pop("solver", None)
    if "resume" in given:  # a resumed run keeps its own recipe
        said = {"table": said["table"]}
    for name, (our, its) in said.items():
        if name not in given:
            ours.append(our)
            typed.append(its)
    return about.verb, ours, typed


def usage(script: Path) -> str:
    """What `--help` prints: the file that holds the keys, as it is.

    Raises:
        ValueError: if that file cannot be read.
    """
    about = SCRIPTS[script.name]
    if about.config:
        _read(script.with_name(about.config))
    text = f"python {script.name} key=value ...\n\n"
    if about.config:
        text += f"Keys and their values, from {about.config}:\n\n{script.with_name(about.config).read_text(encoding='utf-8')}\n"
    stands = " ".join(about.words)
    return f"{text}It stands for: twoviews {about.verb} {stands}\nEvery key of that can be changed too: twoviews {about.verb} --help\n"


def _read(path: Path) -> dict[str, object]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file: it holds the keys of this command and lies beside it") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds no keys")
    for key in found:
        if key not in (*RULES, *NAMES, WORKERS):
            near = difflib.get_close_matches(str(key), [*RULES, *NAMES], 1, cutoff=0.5)
            raise ValueError(f"{path.name}: no such key {key!r}{f': did you mean {near[0]}?' if near else ''}")
    return found
