"""The commands of the two reference projects, translated: `python simclr.py moco_k=4096` becomes a command of ours.

The projects are p3i0t/SimCLR-CIFAR10 (`simclr.py`, `simclr_lin.py`, `moco.py`) and dkobak/simclr-cifar10
(`simclr-cifar10.py`). `NAMES` maps their key names to ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twoviews.config.files import read_text, read_yaml
from twoviews.config.hints import hint
from twoviews.config.load import check, word
from twoviews.config.schema import RULES

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
WORKERS = "workers"  # number of data loader processes there; we have none


@dataclass(frozen=True)
class Script:
    """One command of a reference project.

    Args:
        verb: our verb.
        words: our words that it stands for.
        config: the YAML file beside the script with its keys; None: it has none.
        ignored: keys of that file which the script does not use.
        resnet50: our words for what the project changes with that backbone.
    """

    verb: str
    words: tuple[str, ...]
    config: str | None
    ignored: tuple[str, ...] = ()
    resnet50: tuple[str, ...] = ()


TRAINING = ("epochs", "log_interval", "projection_dim", "optimizer", "learning_rate", "min_learning_rate", "momentum", "weight_decay")
EVALUATION = ("finetune_epochs", "finetune_learning_rate", "finetune_momentum", "finetune_weight_decay", "load_epoch")
DKOBAK = ("recipe=simclr_cifar10", "probes='knn,knn_euclidean,linear_precomp,linear_augm'", "solver=adam", "table=dkobak")
SCRIPTS = {
    "simclr.py": Script("pretrain", ("recipe=simclr", "table=p3i0t"), "simclr_config.yml", EVALUATION),
    "simclr_lin.py": Script("evaluate", ("probes=linear_sgd", "table=p3i0t"), "simclr_config.yml", (*TRAINING, "temperature")),
    "moco.py": Script("pretrain", ("recipe=moco", "table=p3i0t"), "moco_config.yml", EVALUATION, ("hidden_dims=[2048]",)),
    "simclr-cifar10.py": Script("pretrain", DKOBAK, None, (), ("batch_size=512",)),
}


def translate(path: Path, argv: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """Translate a command line of a reference project into one of ours.

    Args:
        path: the script that was run; its YAML file is beside it.
        argv: `key=value` words with their key names or ours, and flags.

    Returns:
        (verb, our words, for each word what the user typed or the file says). Typed words come first, then the
        words of the file, then those of the script.

    Raises:
        ValueError: if a key does not exist or the file cannot be read.
    """
    script = SCRIPTS[path.name]
    stored = _read(path.with_name(script.config)) if script.config else {}
    ours, typed = _typed_words(script, path.name, argv, stored)
    given = {w.partition("=")[0]: w.partition("=")[2] for w in ours}
    defaults: dict[str, tuple[str, str]] = {}  # our key: (our word, the word shown in errors)
    # an evaluation uses the seed of its run, unless one is typed
    ignored = (WORKERS, *script.ignored, *(["seed"] if script.verb == "evaluate" else []))
    for key, value in stored.items():
        if key not in ignored:
            name = NAMES.get(key, key)
            try:
                defaults[name] = (word(name, value), f"{script.config}: {word(key, value)}")
            except ValueError as error:
                raise ValueError(f"{script.config}: {error}") from None
    if script.verb == "evaluate" and "run" in given:  # a named run need not match the file
        for key in ("dataset", "backbone", "batch_size"):
            defaults.pop(key, None)
    if given.get("backbone", stored.get("backbone")) == "resnet50":
        defaults |= {w.partition("=")[0]: (w, w) for w in script.resnet50}
    defaults |= {w.partition("=")[0]: (w, w) for w in script.words}
    if "probes" in given:
        defaults.pop("solver", None)
    if "resume" in given:  # a resumed run keeps its own recipe
        defaults = {"table": defaults["table"]}
    for name, (our_word, shown) in defaults.items():
        if name not in given:
            ours.append(our_word)
            typed.append(shown)
    return script.verb, ours, typed


def _typed_words(script: Script, name: str, argv: Sequence[str], stored: dict[str, object]) -> tuple[list[str], list[str]]:
    """Return our words for what the user typed, and what was typed for each."""
    known = [*stored, *RULES, WORKERS, *NAMES]
    ours: list[str] = []
    typed: list[str] = []
    for raw in argv:
        key, equals, value = raw.partition("=")
        if not equals or key[:1] in "+~-":
            ours.append(raw)  # a flag, or a form that `load` refuses with an explanation
            typed.append(raw)
        elif key not in known:
            raise ValueError(f"{raw}: {name} has no key {key!r}{hint(key, known)}")
        elif key == WORKERS:
            print("workers: not needed: images are in memory and views are made on the device")
        elif key in script.ignored:
            reader = "evaluate" if script.verb == "pretrain" else "pretrain"  # a wrong value is still refused
            check(reader, [f"{NAMES.get(key, key)}={value}"], sweep=False, typed=[raw])
            print(f"{key}: {name} does not use it")
        else:
            ours.append(f"{NAMES.get(key, key)}={value}")
            typed.append(raw)
    return ours, typed


def usage(path: Path) -> str:
    """Return the text of `--help`: the YAML file with the keys, and the command of ours that the script stands for.

    Raises:
        ValueError: if that file cannot be read.
    """
    script = SCRIPTS[path.name]
    text = f"usage: python {path.name} key=value ...\n\n"
    if script.config:
        file = path.with_name(script.config)
        _read(file)
        text += f"Keys and their values, from {script.config}:\n\n{read_text(file)}\n"
    return (
        f"{text}The same as: twoviews {script.verb} {' '.join(script.words)}\n"
        f"The other keys of that command can be given too: twoviews {script.verb} --help lists them\n"
    )


def _read(path: Path) -> dict[str, object]:
    if not path.exists():
        raise ValueError(f"{path}: no such file: it must be beside the script and holds its keys")
    found = read_yaml(path)
    for key in found:
        if key not in (*RULES, *NAMES, WORKERS):
            raise ValueError(f"{path.name}: no such key {key!r}{hint(str(key), [*RULES, *NAMES])}")
    return found
