"""Turn a command line into a `Config`: the only reader of overrides and YAML.

`base.yaml` explains every key once, a recipe changes some values, `schema.RULES` holds type, range and role.
Hydra is imported late, so that `twoviews --help` answers at once.
"""

import copy
import functools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from twoviews.config.hints import did_you_mean, hint, no_such_key
from twoviews.config.schema import CONFIG_DIR, RULES, Rule, keys, rule, show

FLAGS = ("--multirun", "-m", "--cfg", "-c", "job", "--help", "-h")
PATH_KEYS = ("resume", "init", "run", "run_id", "runs_dir", "data_dir", "classes", "to")  # their values are taken literally
UNSET = "???"  # OmegaConf's mark: a key that exists only where the recipe gives it a value


class Config(dict[str, Any]):
    """Resolved keys, readable as attributes. `given` names the keys that the user set."""

    given: tuple[str, ...] = ()

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None


def load(verb: str, argv: Sequence[str], typed: Sequence[str] | None = None) -> Config:
    """Return the configuration of one command.

    Args:
        verb: one of `schema.VERBS`.
        argv: `key=value` words in Hydra's grammar; values of path keys are taken literally.
        typed: what the user typed for each word, where that differs; errors show it.

    Raises:
        ValueError: names the wrong word and the nearest key, or what was expected.
    """
    overrides, given = check(verb, argv, sweep=False, typed=typed)
    return _validated(verb, _compose(verb, overrides), given)


def word(key: str, value: Any) -> str:
    """Return `key=value` as it is typed: in quotes where a comma would mean several runs."""
    if value is None or isinstance(value, bool):
        return f"{key}={str(value).lower() if value is not None else 'null'}"
    return f"{key}='{value}'" if isinstance(value, str) and "," in value and key not in PATH_KEYS else f"{key}={value}"


def check(verb: str, argv: Sequence[str], *, sweep: bool, typed: Sequence[str] | None = None) -> tuple[list[str], tuple[str, ...]]:
    """Reject every word that does not set an existing key to a value that it accepts.

    Args:
        verb: one of `schema.VERBS`.
        argv: the words after the verb.
        sweep: whether `seed=0,1,2` may stand for several runs.
        typed: see `load`.

    Returns:
        The words for Hydra, with paths escaped, and the keys that they set.

    Raises:
        ValueError: one line that names the word, what was expected and the nearest key.
    """
    shown = list(typed or argv)
    words = [_escape_path(word) for word in argv]
    overrides = [_parse(raw, ours, word) for raw, ours, word in zip(shown, argv, words, strict=True)]
    recipes = [o for o in overrides if o.key_or_group == "recipe"] if verb == "pretrain" else []
    for override, raw in zip(overrides, shown, strict=True):
        if override in recipes:
            _check_values(verb, override, raw, sweep)
    named = [f"recipe={name}" for name in _values(recipes[-1])] if recipes else []
    known = {f"{verb} with {first}": _compose(verb, [first]) for first in named} or {verb: _compose(verb, [])}
    for override, raw in zip(overrides, shown, strict=True):
        key = override.key_or_group
        for where, config in known.items():
            if key not in config:
                raise ValueError(f"{raw}: {where} has no key {key!r}{no_such_key(key, verb, config)}")
        _check_values(verb, override, raw, sweep)
    given = [o.key_or_group for o in overrides]
    for key in given:
        if given.count(key) > 1:
            raise ValueError(f"{key} is given {given.count(key)} times: give it once")
    return words, tuple(given)


def _parse(raw: str, argument: str, escaped: str) -> Any:
    """Parse one word as a Hydra override; refuse every form but `key=value`."""
    from hydra.errors import HydraException

    key, equals, _ = argument.partition("=")
    bare = key.lstrip("+~")
    if key != bare:
        advice = f": type {bare}=<value>" if bare in RULES else hint(bare, RULES)
        raise ValueError(f"{raw}: keys cannot be added or removed{advice}")
    if key.startswith("-"):
        plain = raw.lstrip("-") if equals else f"{raw.lstrip('-')}=<value>"
        advice = f"type {plain}" if key.lstrip("-") in RULES else "expected --multirun, --cfg job or --help"
        raise ValueError(f"{raw}: no such flag: {advice}")
    if not equals:
        raise ValueError(f"{raw}: expected {raw}=<value>" if raw in RULES else f"{raw}: expected key=value{hint(raw, RULES)}")
    if bare not in PATH_KEYS and "${" in raw:
        raise ValueError(f"{raw}: a value cannot refer to another key or to the environment: write it out")
    try:
        override = _parser().parse_override(escaped)
    except HydraException:
        raise ValueError(f"{raw}: not of the form key=value: put quotes around a value with spaces, commas or brackets") from None
    kind = override.value_type
    if override.package is not None or (kind is not None and kind.name in ("INTERVAL_SWEEP", "GLOB_CHOICE_SWEEP")):
        raise ValueError(f"{raw}: expected key=value, or values with commas: Hydra's packages, intervals and globs are not supported")
    return override


@functools.cache
def _parser() -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _check_values(verb: str, override: Any, raw: str, sweep: bool) -> None:
    key = override.key_or_group
    expected = rule(verb, key)
    if override.is_sweep_override() and not sweep:
        one = f"; one run with a list: \"{key}='{raw.partition('=')[2]}'\"" if expected.words else ""
        raise ValueError(f"{raw}: several values need --multirun{one}")
    for value in _values(override):
        if not expected.accepts(value):
            choices = [c for c in expected.choices if isinstance(c, str)]
            raise ValueError(f"{raw}: {key} expects {expected}, got {show(value)!r}{did_you_mean(str(value), choices)}")


def _values(override: Any) -> list[Any]:
    """Return the value of an override, or each value of a sweep, as plain Python."""
    from hydra.core.override_parser.types import QuotedString

    if override.is_sweep_override():
        parse = _parser().parse_override
        return [v for item in override.sweep_iterator() for v in _values(parse(f"{override.key_or_group}={item}"))]

    def plain(v: Any) -> Any:
        if isinstance(v, QuotedString):
            return v.text
        return [plain(item) for item in v] if isinstance(v, list) else v

    return [plain(override.value())]


def _escape_path(word: str) -> str:
    """Quote the value of a path key, so that spaces, accents, commas and `=` in a path stay as they are."""
    key, equals, value = word.partition("=")
    if key not in PATH_KEYS or not equals or value == "null":
        return word
    from hydra.core.override_parser.types import Quote, QuotedString

    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return f"{key}={QuotedString(text=value.replace('${', chr(92) + '${'), quote=Quote.single).with_quotes()}"


def _for_hydra(overrides: Sequence[str]) -> list[str]:
    """Return the words with `recipe=` as Hydra's group `recipes=`, which is the folder's name."""
    return ["recipes" + word.removeprefix("recipe") if word.startswith("recipe=") else word for word in overrides]


def _version_base() -> dict[str, str]:
    """Return the argument that Hydra 1.3 needs; later versions have one set of defaults and warn about it."""
    import hydra

    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


def _compose(verb: str, overrides: Sequence[str]) -> Config:
    return Config(copy.deepcopy(dict(_composed(CONFIG_DIR, verb, tuple(_for_hydra(overrides))))))


@functools.lru_cache(maxsize=64)  # Hydra needs a tenth of a second, and `check` and `load` often ask for the same
def _composed(folder: Path, verb: str, words: tuple[str, ...]) -> Config:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(folder), **_version_base()):
        return _for_verb(verb, compose(verb if (folder / f"{verb}.yaml").is_file() else "base", list(words)))


def _for_verb(verb: str, composed: Any) -> Config:
    """Return the keys that a verb takes, without those that the recipe leaves unset."""
    from omegaconf import OmegaConf

    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    if missing := [key for key in values if key not in RULES]:
        raise ValueError(f"{missing[0]}: a YAML file has this key, but RULES in config/schema.py has no rule for it: add one there")
    taken = keys(verb=verb)
    return Config({key: value for key, value in values.items() if key in taken and value != UNSET})


def _validated(verb: str, cfg: Config, given: tuple[str, ...]) -> Config:
    for key, value in cfg.items():
        expected: Rule = rule(verb, key)
        if not expected.accepts(value):
            raise ValueError(f"{key}: the recipe says {show(value)!r}, expected {expected}")
    cfg.given = given
    return cfg


def show_config(verb: str, argv: Sequence[str], typed: Sequence[str] | None = None) -> str:
    """Return the resolved configuration as YAML, for `--cfg job`.

    Raises:
        ValueError: as `load`, or if the words after `--cfg` are not `job`.
    """
    flags = [i for i, word in enumerate(argv) if word in ("--cfg", "-c")]
    if len(flags) != 1 or argv[flags[0] + 1 : flags[0] + 2] != ["job"]:
        raise ValueError("--cfg: expected --cfg job")
    kept = [i for i in range(len(argv)) if i not in (flags[0], flags[0] + 1)]
    cfg = load(verb, [argv[i] for i in kept], [(typed or argv)[i] for i in kept])
    return yaml.safe_dump(dict(cfg), sort_keys=False, allow_unicode=True)


def sweep(verb: str, argv: Sequence[str], task: Callable[[Config], int], typed: Sequence[str] | None = None) -> int:
    """Run `--multirun` through Hydra's sweeper, one run after another.

    Args:
        verb: `pretrain` or `evaluate`.
        argv: the words after the verb, `--multirun` among them.
        task: called once per run; the sweep stops at the first exit code that is not 0.
        typed: see `load`.

    Returns:
        The last exit code.

    Raises:
        ValueError: as `check`.
    """
    import hydra

    if verb not in ("pretrain", "evaluate"):
        raise ValueError(f"--multirun: {verb} runs once: expected pretrain or evaluate")
    kept = [i for i, w in enumerate(argv) if w not in ("--multirun", "-m")]
    words, given = check(verb, [argv[i] for i in kept], sweep=True, typed=[(typed or argv)[i] for i in kept])
    codes = [0]

    @hydra.main(config_path=str(CONFIG_DIR), config_name=verb, **_version_base())
    def job(composed: Any) -> None:
        codes.append(task(_validated(verb, _for_verb(verb, composed), given)))
        if codes[-1]:
            raise SystemExit(codes[-1])

    before = sys.argv
    with tempfile.TemporaryDirectory() as scratch:
        sys.argv = [before[0] if typed else f"twoviews {verb}", "--multirun", *_for_hydra(words), f"hydra.sweep.dir='{scratch}'"]
        try:
            job()
        finally:
            sys.argv = before
    return codes[-1]
