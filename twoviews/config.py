"""`load(verb, argv)` turns a command line into a `Config`: the only reader of overrides and YAML.

The card is the schema: the keys of `conf/<verb>.yaml` (for `pretrain` with the recipe's card) are the keys that exist.
`rules.RULES` holds each key's type and range.
"""

from __future__ import annotations

import difflib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from twoviews.rules import CONF, RULES, rule, show

VERBS = ("pretrain", "evaluate", "runs", "report", "bench", "doctor")
FLAGS = ("--multirun", "-m", "--cfg", "-c", "job", "--help", "-h")  # of Hydra's: the others run or read what is no key
PATH_KEYS = ("resume", "init", "run", "run_id", "runs_dir", "data_dir")  # their values are taken literally


class Config(dict[str, Any]):
    """Resolved keys, readable as attributes. `given` names the keys that the user set."""

    given: tuple[str, ...] = ()

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None


def load(verb: str, argv: Sequence[str], typed: Sequence[str] | None = None) -> Config:
    """The configuration of one command.

    Args:
        verb: one of `VERBS`.
        argv: `key=value` words, Hydra's grammar; values of path keys are taken literally.
        typed: what the user typed for each of them, where that is something else; errors show it.

    Raises:
        ValueError: naming the word at fault, the nearest key or what was expected.
    """
    overrides, given = check(verb, argv, sweep=False, typed=typed)
    return _finish(verb, _compose(verb, overrides), given)


def word(key: str, value: Any) -> str:
    """`key=value` as it is typed: in quotes where a comma would mean several runs."""
    if value is None or isinstance(value, bool):
        return f"{key}={str(value).lower() if value is not None else 'null'}"
    return f"{key}='{value}'" if isinstance(value, str) and "," in value and key not in PATH_KEYS else f"{key}={value}"


def check(verb: str, argv: Sequence[str], *, sweep: bool, typed: Sequence[str] | None = None) -> tuple[list[str], tuple[str, ...]]:
    """Refuse every word that is not a plain change of a key that exists, to a value that it takes.

    Args:
        verb: one of `VERBS`.
        argv: the words after the verb.
        sweep: whether `seed=0,1,2` may stand for several runs.
        typed: see `load`.

    Returns:
        The words for Hydra, paths escaped, and the keys that they set.

    Raises:
        ValueError: one line that names the word, what was expected and the nearest key.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override
    from hydra.errors import HydraException

    shown = list(typed or argv)
    words = [_escape_path(word) for word in argv]
    parser = OverridesParser.create()
    overrides: list[Override] = []
    for raw, ours, word in zip(shown, argv, words, strict=True):
        key, equals, _ = ours.partition("=")
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
        kind = overrides[-1].value_type
        if overrides[-1].package is not None or (kind is not None and kind.name in ("INTERVAL_SWEEP", "GLOB_CHOICE_SWEEP")):
            raise ValueError(f"{raw}: expected key=value, or values with commas: Hydra's packages, intervals and globs are not used here")
    recipes = [o for o in overrides if o.key_or_group == "recipe"]
    for override, raw in zip(overrides, shown, strict=True):
        if override.key_or_group == "recipe" and verb == "pretrain":
            _check_values(verb, override, raw, sweep)
    asked = [f"recipe={name}" for name in _values(recipes[-1])] if recipes and verb == "pretrain" else []
    cards = {f"{verb} with {first}": _compose(verb, [first]) for first in asked} or {verb: _compose(verb, [])}
    for override, raw in zip(overrides, shown, strict=True):
        for where, card in cards.items():
            if override.key_or_group not in card:
                raise ValueError(f"{raw}: {where} has no key {override.key_or_group!r}{_hint(override.key_or_group, list(card))}")
        _check_values(verb, override, raw, sweep)
    seen = [o.key_or_group for o in overrides]
    for key in seen:
        if seen.count(key) > 1:
            raise ValueError(f"{key} is given {seen.count(key)} times: give it once")
    return words, tuple(seen)


def _check_values(verb: str, override: Any, raw: str, sweep: bool) -> None:
    key = override.key_or_group
    wanted = rule(verb, key)
    if override.is_sweep_override() and not sweep:
        raise ValueError(f"{raw}: several values need --multirun")
    for value in _values(override):
        if not wanted.accepts(value):
            choices = [c for c in wanted.choices if isinstance(c, str)]
            near = difflib.get_close_matches(str(value), choices, 1)
            raise ValueError(f"{raw}: {key} expects {wanted}, got {show(value)!r}" + (f": did you mean {near[0]}?" if near else ""))


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


def _defaults() -> dict[str, str]:
    """Hydra 1.3 asks which version's defaults it should have; from 1.4 on there is one set of them, and asking is deprecated."""
    import hydra

    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


def _compose(verb: str, overrides: list[str]) -> Config:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONF), **_defaults()):
        return Config(OmegaConf.to_container(compose(verb, overrides), resolve=True))  # type: ignore[arg-type]


def _finish(verb: str, cfg: Config, given: tuple[str, ...]) -> Config:
    for key, value in cfg.items():
        if key in RULES and not rule(verb, key).accepts(value):
            raise ValueError(f"{key}: the card says {show(value)!r}, expected {rule(verb, key)}")
    cfg.given = given
    return cfg


def with_hydra(verb: str, argv: Sequence[str], task: Callable[[Config], int], typed: Sequence[str] | None = None) -> int:
    """`--multirun`, `--cfg` and `--help` through `hydra.main`, which leaves no folder of its own behind.

    Args:
        verb: one of `VERBS`.
        argv: the words after the verb, Hydra's flags among them.
        task: called once a run; the sweep stops at the first exit code that is not 0.
        typed: see `load`.

    Returns:
        The last exit code.

    Raises:
        ValueError: as `check`.
    """
    import hydra
    from omegaconf import DictConfig, OmegaConf

    flags = [w for i, w in enumerate(argv) if (w in FLAGS and w != "job") or (i and argv[i - 1] in ("--cfg", "-c"))]
    if ("--cfg" in flags or "-c" in flags) and "job" not in flags:
        raise ValueError("--cfg: expected --cfg job")
    sweep = "--multirun" in flags or "-m" in flags
    kept = [i for i, w in enumerate(argv) if w not in flags]
    words, given = check(verb, [argv[i] for i in kept], sweep=sweep, typed=[(typed or argv)[i] for i in kept])
    codes = [0]

    @hydra.main(config_path=str(CONF), config_name=verb, **_defaults())
    def job(cfg: DictConfig) -> None:
        codes.append(task(_finish(verb, Config(OmegaConf.to_container(cfg, resolve=True)), given)))  # type: ignore[arg-type]
        if codes[-1]:
            raise SystemExit(codes[-1])

    before = sys.argv
    with tempfile.TemporaryDirectory() as scratch:
        sys.argv = [before[0] if typed else f"twoviews {verb}", *flags, *words, *([f"hydra.sweep.dir='{scratch}'"] if sweep else [])]
        try:
            job()
        finally:
            sys.argv = before
    return codes[-1]
