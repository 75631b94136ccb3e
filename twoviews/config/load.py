"""Turn a command line into a `Config`: the only reader of overrides.

`base.yaml` explains every key once, a recipe changes some values, `schema.RULES` holds type, range and role.
Values are in Hydra's grammar. It is imported late, so that `twoviews --help` answers at once.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from twoviews.config import files
from twoviews.config.hints import did_you_mean, hint, no_such_key
from twoviews.config.schema import PATH_KEYS, RULES, rule, show
from twoviews.config.views import view_differences

FLAGS = ("--multirun", "-m", "--cfg", "-c", "job", "--help", "-h")
INPUTS = ("data_dir", "init", "classes")  # of these, files and folders that a later command reads again
MOST_VALUES = 1000  # of one key in a sweep
PLAIN_TEXT = re.compile(r"[A-Za-z0-9_.+-]+")  # needs no quotes in Hydra's grammar
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")  # user/name on the Hugging Face Hub


class Config(dict[str, Any]):
    """Resolved keys, readable as attributes. `given` names the keys that the user set."""

    given: tuple[str, ...] = ()

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None


@dataclass(frozen=True)
class Word:
    """One word of a command line.

    Args:
        shown: what the user typed.
        key: of ours.
        values: one, or several in a sweep.
        texts: each value as it can be typed again.
    """

    shown: str
    key: str
    values: tuple[Any, ...]
    texts: tuple[str, ...]


def load(verb: str, argv: Sequence[str], typed: Sequence[str] | None = None) -> Config:
    """Return the configuration of one command.

    Args:
        verb: one of `schema.VERBS`.
        argv: `key=value` words in Hydra's grammar; values of path keys are taken literally, except that `~` is the home folder.
        typed: what the user typed for each word, where that differs; errors show it.

    Raises:
        ValueError: names the wrong word and the nearest key, or what was expected.
    """
    words = check(verb, argv, sweep=False, typed=typed)
    return assemble(verb, {word.key: word.values[0] for word in words})


def assemble(verb: str, given: dict[str, Any]) -> Config:
    """Return the configuration of a command from the keys that were given, which `check` has accepted one by one.

    Raises:
        ValueError: if the values do not fit together.
    """
    settings = _compose(verb, given.get("recipe"), given.get("method")) if verb == "pretrain" else _compose(verb)
    cfg = Config({**settings, **given})
    cfg.given = tuple(given)
    if verb == "pretrain" and cfg.resume is None:  # a resumed run keeps its own values
        _check_together(cfg)
    if cfg.get("push") is not None and not REPOSITORY.fullmatch(cfg.push):
        raise ValueError(f"push={cfg.push}: expected user/name, such as push=ada/cells")
    return cfg


def _check_together(cfg: Config) -> None:
    """Refuse combinations of values that cannot be trained on any data."""
    peak = cfg.base_learning_rate * cfg.batch_size / 256 if cfg.learning_rate is None else cfg.learning_rate
    if cfg.min_learning_rate > peak:
        raise ValueError(f"min_learning_rate={cfg.min_learning_rate}: above the peak rate {peak:g}: choose at most that")
    if cfg.warmup_epochs >= cfg.epochs and cfg.warmup_epochs > 0:
        raise ValueError(f"warmup_epochs={cfg.warmup_epochs}: as long as the run ({cfg.epochs} epochs): choose less")
    view_differences(cfg)  # refuses lists of different lengths
    labelled_only = cfg.train_on != "train+val+test" and cfg.dataset != "folder"  # a folder may have images without labels, too
    if cfg.train_size is not None and cfg.batch_size > cfg.train_size and labelled_only:
        raise ValueError(f"batch_size={cfg.batch_size}: train_size={cfg.train_size} leaves fewer images: choose at most that")


def stored(cfg: Config) -> dict[str, Any]:
    """Return the values to store with a run: the paths that later commands read are absolute, so that these work in any folder."""
    return {
        **cfg,
        **{key: os.path.abspath(cfg[key]) for key in INPUTS if cfg.get(key) and os.path.exists(cfg[key])},  # noqa: PTH100, PTH110
    }


def word(key: str, value: Any) -> str:
    """Return `key=value` as it is typed.

    Args:
        key: one of `schema.RULES`.
        value: None, a bool, number, text or path, or a tuple, list, range or array of them; scalars of numpy and torch
            too; for `views`, a list of mappings.

    Raises:
        ValueError: if the value is of another type.
    """
    return f"{key}={_typed(key, _plain(key, value))}"


def _plain(key: str, value: Any) -> Any:
    """Return a value in the types of YAML."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | os.PathLike):
        return os.fsdecode(value)
    if hasattr(value, "tolist"):  # an array, a tensor, or a scalar of numpy or torch
        return _plain(key, value.tolist())
    if isinstance(value, Mapping) and key == "views":
        return {str(name): _plain(key, item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(key, item) for item in value]
    raise ValueError(f"{key}: expected None, a number, a text, a path or a list of them, got {type(value).__name__}")


def _typed(key: str, value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(_typed(key, item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{_typed(key, item)}' for name, item in value.items())}}}"
    if not isinstance(value, str):
        return show(value)
    if key in PATH_KEYS:  # quotes keep a path that looks like something else
        return f"'{value}'" if value == "null" or value != _without_quotes(value) else value
    from hydra.core.override_parser.types import Quote, QuotedString

    return value if PLAIN_TEXT.fullmatch(value) or not value else QuotedString(text=value, quote=Quote.single).with_quotes()


def check(verb: str, argv: Sequence[str], *, sweep: bool, typed: Sequence[str] | None = None) -> list[Word]:
    """Return the words of a command line; reject every word that does not set an existing key to a value that it accepts.

    Args:
        verb: one of `schema.VERBS`.
        argv: the words after the verb.
        sweep: whether `seed=0,1,2` may stand for several runs.
        typed: see `load`.

    Raises:
        ValueError: one line that names the word, what was expected and the nearest key.
    """
    words = [_parse(raw, ours) for raw, ours in zip(typed or argv, argv, strict=True)]
    choosing = [word for word in words if verb == "pretrain" and word.key in ("recipe", "method")]  # they decide which keys exist
    for word in choosing:
        _check_values(verb, word, sweep)
    chosen = {word.key: word.values for word in choosing}
    for recipe, method in product(chosen.get("recipe", (None,)), chosen.get("method", (None,))):
        known = _compose(verb, recipe, method)
        named = f"{verb} with recipe={recipe}" if recipe else verb
        for word in words:
            if word.key not in known:
                raise ValueError(f"{word.shown}: {named} has no key {word.key!r}{no_such_key(word.key, verb, known)}")
    for word in words:
        _check_values(verb, word, sweep)
    given = [word.key for word in words]
    for key in given:
        if given.count(key) > 1:
            raise ValueError(f"{key} is given {given.count(key)} times: give it once")
    return words


def _parse(raw: str, argument: str) -> Word:
    """Parse one word as a Hydra override; refuse every form but `key=value`."""
    from hydra.errors import HydraException

    key, equals, value = argument.partition("=")
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
    if key in PATH_KEYS:
        return Word(raw, key, (_path(raw, key, value),), (value,))
    if "${" in raw:
        raise ValueError(f"{raw}: a value cannot refer to another key or to the environment: write it out")
    try:
        override = _override(argument)
        kind = override.value_type
        if override.package is not None or (kind is not None and kind.name in ("INTERVAL_SWEEP", "GLOB_CHOICE_SWEEP")):
            raise ValueError(f"{raw}: expected key=value, or values with commas: Hydra's packages, intervals and globs are not supported")
        texts = (
            [str(text) for text in islice(override.sweep_string_iterator(), MOST_VALUES + 1)] if override.is_sweep_override() else [value]
        )
        values = [_value(_override(f"{key}={text}").value()) for text in texts]
    except HydraException:
        raise ValueError(f"{raw}: not of the form key=value: put quotes around a value with spaces, commas or brackets") from None
    if not 0 < len(values) <= MOST_VALUES:
        raise ValueError(f"{raw}: {'no value' if not values else f'more than {MOST_VALUES} values'}: expected 1 to {MOST_VALUES}")
    return Word(raw, override.key_or_group, tuple(values), tuple(texts))


def _override(text: str) -> Any:
    """Return one word as Hydra's parser reads it. Its record of Hydra's version belongs to the program that calls us."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.singleton import Singleton
    from hydra.version import VersionBase

    unused = VersionBase not in Singleton._instances
    try:
        return OverridesParser.create().parse_override(text)
    finally:
        if unused:
            Singleton._instances.pop(VersionBase, None)


def _value(parsed: Any) -> Any:
    """Return a value of Hydra's parser as plain Python."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(parsed, QuotedString):
        return parsed.text
    if isinstance(parsed, dict):
        return {str(_value(key)): _value(item) for key, item in parsed.items()}
    return [_value(item) for item in parsed] if isinstance(parsed, list) else parsed


def _path(raw: str, key: str, value: str) -> str | None:
    """Return the value of a path key: spaces, accents, commas and `=` stay, a leading `~` or `~user` is that home folder."""
    if value == "null":
        return None
    value = _without_quotes(value)
    expanded = value if key == "run_id" else os.path.expanduser(value)  # noqa: PTH111 - Path would change the rest of the text
    if expanded.startswith("~") and key != "run_id":
        raise ValueError(f"{raw}: {value.split('/')[0]} has no home folder here: write the path out, or ./{value} for a file of that name")
    return expanded


def _without_quotes(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _check_values(verb: str, word: Word, sweep: bool) -> None:
    expected = rule(verb, word.key)
    if len(word.values) != 1 and not sweep:
        one = f"; one run with a list: \"{word.key}='{word.shown.partition('=')[2]}'\"" if expected.words else ""
        raise ValueError(f"{word.shown}: several values need --multirun{one}")
    for value in word.values:
        if not expected.accepts(value):
            choices = [c for c in expected.choices if isinstance(c, str)]
            raise ValueError(f"{word.shown}: {word.key} expects {expected}, got {show(value)!r}{did_you_mean(str(value), choices)}")


def _compose(verb: str, recipe: str | None = None, method: str | None = None) -> Config:
    """Return the keys of a command with the values of its files, for a method if it is not the recipe's own."""
    settings = files.values(verb, recipe)
    return Config(settings if method in (None, settings.get("method")) else files.with_method(settings, str(method)))
