"""`load(verb, argv)` turns a command line into a `Config`: the only reader of overrides and YAML.

The card is the schema: the keys of `conf/<verb>.yaml` (for `pretrain` with the recipe's card) are the keys that exist.
`RULES` holds each key's type and range beside the card, because a wrong value must be refused before torch is imported.
"""

from __future__ import annotations

import difflib
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONF = Path(__file__).parent / "conf"
VERBS = ("pretrain", "evaluate", "runs", "report", "doctor")
FLAGS = ("--multirun", "-m", "--cfg", "-c", "job", "--help", "-h")  # of Hydra's: the others run or read what is no key
PATH_KEYS = ("resume", "init", "run", "runs_dir", "data_dir")


class Config(dict[str, Any]):
    """Resolved keys, readable as attributes. `given` names the keys that the user set."""

    given: tuple[str, ...] = ()

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None


@dataclass(frozen=True)
class Rule:
    """What values a key takes.

    Args:
        type: int, float, bool or str.
        low, high: closed range of a number; `above` excludes `low` itself.
        choices: if not empty, the only values.
        null: whether `null` is a value (it stands for a choice that the program makes and prints).
        items: None for a single value; otherwise the least number of items of a list.
        pair: the list has two items, low then high.
        words: the value is one choice, or several with commas in one text.
    """

    type: type
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    choices: tuple[Any, ...] = ()
    null: bool = False
    items: int | None = None
    pair: bool = False
    words: bool = False

    def __str__(self) -> str:
        if self.choices:
            text = (
                " or ".join(_show(c) for c in self.choices)
                if len(self.choices) < 4
                else "one of " + ", ".join(_show(c) for c in self.choices)
            )
        else:
            text = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[self.type]
            if self.above:
                text += f" above {self.low:g}" + (f", at most {self.high:g}" if self.high < math.inf else "")
            elif self.low > -math.inf:
                text += f" in [{self.low:g}, {self.high:g}]" if self.high < math.inf else f" of at least {self.low:g}"
        if self.items is not None:
            text = f"a list of {'two, low then high' if self.pair else f'at least {self.items}'}, each {text}"
        if self.words:
            text += ", or several in quotes ('knn,linear')"
        return text + (" or null" if self.null else "")

    def accepts(self, value: Any) -> bool:
        """Whether a value has the type and lies in the range."""
        if value is None:
            return self.null
        if self.items is not None:
            if not isinstance(value, list) or len(value) < self.items or not all(self._accepts_one(item) for item in value):
                return False
            return not self.pair or (len(value) == 2 and value[0] <= value[1])
        if self.words and isinstance(value, str):
            return all(self._accepts_one(word.strip()) for word in value.split(","))
        return self._accepts_one(value)

    def _accepts_one(self, value: Any) -> bool:
        if self.choices:
            return any(value == c and type(value) is type(c) for c in self.choices)
        if self.type is float:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and math.isfinite(value) and (value > self.low if self.above else value >= self.low) and value <= self.high
        if self.type is int:
            return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high
        if self.type is str:
            return isinstance(value, str) and value != ""
        return isinstance(value, bool)


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_p = Rule(float, 0, 1)
_strength = Rule(float, 0, 10)
_path = Rule(str, null=True)

METHODS = tuple(sorted(f.stem for f in (Path(__file__).parent / "methods").glob("*.py") if f.stem not in ("__init__", "base")))

RULES: dict[str, Rule] = {
    # what is trained
    "recipe": Rule(str, choices=tuple(sorted(f.stem for f in (CONF / "recipe").glob("*.yaml")))),
    "method": Rule(str, choices=METHODS),
    "dataset": Rule(str, choices=("cifar10", "fashion_mnist", "fashion_mini")),
    "backbone": Rule(str, choices=("resnet18", "resnet34", "resnet50", "thin16", "thin32")),
    "whiten_stem": Rule(bool),
    "train_on": Rule(str, choices=("train", "train+val")),
    "epochs": Rule(int, 1, 100_000),
    "batch_size": Rule(int, 2, 65_536),
    # views
    "view_sizes": Rule(int, 8, 512, null=True, items=1),
    "crop_scale": Rule(float, 0, 1, above=True, items=2, pair=True),
    "crop_ratio": Rule(float, 0, 100, above=True, items=2, pair=True),
    "flip_p": _p,
    "jitter_p": _p,
    "brightness": _strength,
    "contrast": _strength,
    "saturation": _strength,
    "hue": Rule(float, 0, 0.5),
    "grayscale_p": _p,
    "blur_p": _p,
    "blur_kernel": Rule(int, choices=(3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23)),
    "blur_sigma": Rule(float, 0, 100, above=True, items=2, pair=True),
    "solarize_p": _p,
    "normalize": Rule(bool),
    # the method
    "hidden_dims": Rule(int, 1, 65_536, items=0),
    "out_dim": Rule(int, 1, 65_536),
    "hidden_bn": Rule(bool),
    "output_bn": Rule(bool),
    "one_forward": Rule(bool),
    "temperature": Rule(float, 0, 1000, above=True),
    # the optimiser
    "optimizer": Rule(str, choices=("sgd", "muon")),
    "learning_rate": Rule(float, 0, 1000, above=True, null=True),
    "base_learning_rate": Rule(float, 0, 1000, above=True),
    "min_learning_rate": Rule(float, 0, 1000),
    "momentum": Rule(float, 0, 0.9999),
    "nesterov": Rule(bool),
    "weight_decay": Rule(float, 0, 10),
    "decay_norms": Rule(bool),
    "schedule": Rule(str, choices=("cosine", "constant")),
    "schedule_unit": Rule(str, choices=("step", "epoch")),
    "warmup_epochs": Rule(float, 0, 100_000),
    # once in a while, in epochs
    "probe_every": Rule(float, 0, 100_000),
    "checkpoint_every": Rule(float, 0, 100_000, above=True),
    "log_interval": Rule(float, 0, 100_000),
    # afterwards
    "probes": Rule(str, choices=("fast", "knn", "linear"), words=True),
    # the machine and the place
    "seed": Rule(int, 0, 2**32 - 1),
    "device": Rule(str, choices=("auto", "cpu", "cuda", "mps")),
    "threads": Rule(int, 1, 1024, null=True),
    "precision": Rule(str, choices=("auto", "bf16", "fp32", "fp64")),
    "compile": Rule(str, choices=("auto", True, False)),
    "max_steps": Rule(int, 1, null=True),
    "runs_dir": Rule(str),
    "data_dir": _path,
    "resume": _path,
    "init": _path,
    "run": Rule(str),
    "debug": Rule(bool),
    # `twoviews runs`
    "view": Rule(str, choices=("list", "best", "compare")),
    "format": Rule(str, choices=("markdown", "csv", "latex")),
}


def load(verb: str, argv: Sequence[str]) -> Config:
    """The configuration of one command.

    Args:
        verb: one of `VERBS`.
        argv: `key=value` words, Hydra's grammar; values of path keys are taken literally.

    Raises:
        ValueError: naming the word at fault, the nearest key or what was expected.
    """
    overrides, given = check(verb, argv, sweep=False)
    return _finish(_compose(verb, overrides), given)


def check(verb: str, argv: Sequence[str], *, sweep: bool) -> tuple[list[str], tuple[str, ...]]:
    """Refuse every word that is not a plain change of a key that exists, to a value that it takes.

    Args:
        verb: one of `VERBS`.
        argv: the words after the verb.
        sweep: whether `seed=0,1,2` may stand for several runs.

    Returns:
        The words for Hydra, paths escaped, and the keys that they set.

    Raises:
        ValueError: one line that names the word, what was expected and the nearest key.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override
    from hydra.errors import HydraException

    words = [_escape_path(word) for word in argv]
    parser = OverridesParser.create()
    overrides: list[Override] = []
    for raw, word in zip(argv, words, strict=True):
        key, equals, _ = raw.partition("=")
        bare = key.lstrip("+~")
        if key != bare:
            raise ValueError(
                f"{raw}: keys are changed with key=value, none is added or removed: did you mean {_nearest(bare, list(RULES))}=...?"
            )
        if key.startswith("-"):
            raise ValueError(f"{raw}: no such flag: there are --multirun, --cfg job and --help")
        if not equals:
            raise ValueError(f"{raw}: expected key=value{_hint(raw, list(RULES))}")
        if bare not in PATH_KEYS and "${" in raw:
            raise ValueError(f"{raw}: a value cannot refer to another key or to the environment: write it out")
        try:
            overrides.append(parser.parse_override(word))
        except HydraException:
            raise ValueError(f"{raw}: not of the form key=value: put quotes around a value with spaces, commas or brackets") from None
    recipes = [o for o in overrides if o.key_or_group == "recipe"]
    for override, raw in zip(overrides, argv, strict=True):
        if override.key_or_group == "recipe" and verb == "pretrain":
            _check_values(override, raw, sweep)
    first = f"recipe={_values(recipes[-1])[0]}" if recipes and verb == "pretrain" else None
    card = _compose(verb, [first] if first else [])
    for override, raw in zip(overrides, argv, strict=True):
        if override.key_or_group not in card:
            where = f"{verb} with {first}" if first else verb
            raise ValueError(f"{raw}: {where} has no key {override.key_or_group!r}{_hint(override.key_or_group, list(card))}")
        _check_values(override, raw, sweep)
    seen = [o.key_or_group for o in overrides]
    for key in seen:
        if seen.count(key) > 1:
            raise ValueError(f"{key} is given {seen.count(key)} times: give it once")
    return words, tuple(seen)


def _check_values(override: Any, raw: str, sweep: bool) -> None:
    key = override.key_or_group
    if override.is_sweep_override() and not sweep:
        raise ValueError(f"{raw}: several values need --multirun")
    for value in _values(override):
        if not RULES[key].accepts(value):
            choices = [c for c in RULES[key].choices if isinstance(c, str)]
            near = difflib.get_close_matches(str(value), choices, 1)
            raise ValueError(f"{raw}: {key} expects {RULES[key]}, got {_show(value)!r}" + (f": did you mean {near[0]}?" if near else ""))


def _values(override: Any) -> list[Any]:
    """The value of an override, or each value of a sweep, as plain Python."""
    from hydra.core.override_parser.types import QuotedString

    if override.is_sweep_override():
        raw = list(override.sweep_iterator())
        from hydra.core.override_parser.overrides_parser import OverridesParser

        return [v for item in raw for v in _values(OverridesParser.create().parse_override(f"{override.key_or_group}={item}"))]
    value = override.value()

    def plain(v: Any) -> Any:
        if isinstance(v, QuotedString):
            return v.text
        return [plain(item) for item in v] if isinstance(v, list) else v

    return [plain(value)]


def _nearest(key: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(key, keys, 1, cutoff=0.0)
    return near[0] if near else keys[0]


def _hint(key: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(key.partition("=")[0], keys, 1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near else ""


def _escape_path(word: str) -> str:
    """Quote the value of a path key, so that spaces, accents, commas and `=` in a path reach us as they are."""
    key, equals, value = word.partition("=")
    if key not in PATH_KEYS or not equals or value == "null":
        return word
    from hydra.core.override_parser.types import Quote, QuotedString

    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return f"{key}={QuotedString(text=value.replace('${', chr(92) + '${'), quote=Quote.single).with_quotes()}"


def _compose(verb: str, overrides: list[str]) -> Config:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONF), version_base="1.3"):
        return Config(OmegaConf.to_container(compose(verb, overrides), resolve=True))  # type: ignore[arg-type]


def _finish(cfg: Config, given: tuple[str, ...]) -> Config:
    for key, value in cfg.items():
        if key in RULES and not RULES[key].accepts(value):
            raise ValueError(f"{key}: the card says {_show(value)!r}, expected {RULES[key]}")
    cfg.given = given
    return cfg


def with_hydra(verb: str, argv: Sequence[str], task: Callable[[Config], int]) -> int:
    """`--multirun`, `--cfg` and `--help` through `hydra.main`, which leaves no folder of its own behind.

    Args:
        verb: one of `VERBS`.
        argv: the words after the verb, Hydra's flags among them.
        task: called once a run; the sweep stops at the first exit code that is not 0.

    Returns:
        The last exit code.

    Raises:
        ValueError: as `check`.
    """
    import hydra
    from omegaconf import DictConfig, OmegaConf

    flags = [w for i, w in enumerate(argv) if w in FLAGS or (i and argv[i - 1] in ("--cfg", "-c"))]
    if ("--cfg" in flags or "-c" in flags) and "job" not in flags:
        raise ValueError("--cfg: expected --cfg job")
    sweep = "--multirun" in flags or "-m" in flags
    words, given = check(verb, [w for w in argv if w not in flags], sweep=sweep)
    codes = [0]

    @hydra.main(config_path=str(CONF), config_name=verb, version_base="1.3")
    def job(cfg: DictConfig) -> None:
        codes.append(task(_finish(Config(OmegaConf.to_container(cfg, resolve=True)), given)))  # type: ignore[arg-type]
        if codes[-1]:
            raise SystemExit(codes[-1])

    before = sys.argv
    with tempfile.TemporaryDirectory() as scratch:
        sys.argv = [f"twoviews {verb}", *flags, *words, *([f"hydra.sweep.dir='{scratch}'"] if sweep else [])]
        try:
            job()
        finally:
            sys.argv = before
    return codes[-1]
