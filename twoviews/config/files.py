"""The YAML files: read, merged and checked. Every error names the file and the key or line."""

import codecs
import copy
import functools
from pathlib import Path
from typing import Any

from twoviews.config.hints import hint
from twoviews.config.schema import CONFIG_DIR, RULES, keys, rule, show

UNSET = "???"  # OmegaConf's mark in base.yaml: a key that exists only where the recipe gives it a value


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with its mark.

    Raises:
        ValueError: if it cannot be read or is in another encoding; with the line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text: save the file in UTF-8") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        ValueError: as `read_text`, or if it is not YAML, has a key twice or holds no keys.
    """
    return copy.deepcopy(_parsed(path, read_text(path)))


@functools.lru_cache(maxsize=64)  # parsing base.yaml takes a hundredth of a second
def _parsed(path: Path, text: str) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        found = OmegaConf.to_container(OmegaConf.create(text))  # its numbers are those of Hydra: 1e-3 is one
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        tab = ": indent with spaces, not with tabs" if "\\t" in str(error.problem) else ""
        raise ValueError(f"{path}, line {line}: not YAML ({' '.join(str(error.problem).split())}){tab}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path}: holds no keys: expected lines of the form key: value")
    return {str(key): value for key, value in found.items()}


def values(verb: str, recipe: str | None = None) -> dict[str, Any]:
    """Return the keys of a command with the values of its files: `base.yaml`, then the verb's own file, then the recipe.

    Args:
        verb: one of `schema.VERBS`.
        recipe: a file in `config/recipes`, without its ending; only for `pretrain`, where None is the default recipe.

    Raises:
        ValueError: as `read_yaml`, or if a file has an unknown key or a wrong value.
    """
    base, own = CONFIG_DIR / "base.yaml", CONFIG_DIR / f"{verb}.yaml"
    files = [base, *([own] if own.is_file() else [])]
    if verb == "pretrain":
        files += _with_parents(CONFIG_DIR / "recipes" / f"{recipe or read_yaml(own)['recipe']}.yaml", ())
    found: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for file in files:
        for key, value in read_yaml(file).items():
            if key == "defaults" and file.parent.name == "recipes":
                continue
            if key not in RULES:
                raise ValueError(f"{file}: {key}: RULES in config/schema.py has no rule for this key{hint(f'{key}=', RULES)}")
            found[key], origin[key] = value, file
    if verb == "pretrain" and found["recipe"] != files[-1].stem:
        raise ValueError(f"{files[-1]}: recipe is {show(found['recipe'])!r}, expected the file's own name, {files[-1].stem}")
    taken = keys(verb=verb)
    found = {key: value for key, value in found.items() if key in taken and value != UNSET}
    for key, value in found.items():
        if not rule(verb, key).accepts(value):
            said = f"{origin[key]}: {key} is {show(value)!r}" if origin[key] != base else f"{files[-1]}: does not set {key}"
            raise ValueError(f"{said}, expected {rule(verb, key)}")
    return found


def _with_parents(file: Path, children: tuple[Path, ...]) -> list[Path]:
    """Return the recipes that a recipe names in its list `defaults`, and the recipe itself, whose values come last."""
    names = read_yaml(file).get("defaults", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or file in children:
        raise ValueError(f"{file}: defaults: expected a list of other recipes and _self_, got {show(names)}")
    parents = [file.with_name(f"{name}.yaml") for name in names if name != "_self_"]
    return [found for parent in parents for found in _with_parents(parent, (*children, file))] + [file]


def with_method(settings: dict[str, Any], method: str) -> dict[str, Any]:
    """Return the values of a recipe for another method than its own: without the keys that this method does not use.

    Raises:
        ValueError: if the recipe lacks a key that the recipes of this method have.
    """
    own = [key for key, value in read_yaml(CONFIG_DIR / "base.yaml").items() if value == UNSET]
    recipes = recipes_of(method)
    used = {key for other in recipes.values() for key in other if key in own}
    if missing := [key for key in own if key in used and key not in settings]:
        raise ValueError(
            f"method={method}: needs the key {missing[0]}, which recipe={settings['recipe']} does not set: "
            f"choose a recipe of this method: {', '.join(recipes)}"
        )
    kept = {key: value for key, value in settings.items() if key not in own or key in used or not recipes}
    return {**kept, "method": method}


def recipes_of(method: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the values of the recipes of a method, or of all methods, by name."""
    found = {}
    for name in RULES["recipe"].choices:
        try:
            settings = values("pretrain", name)
        except ValueError:  # a broken recipe is reported where it is chosen
            continue
        if method in (None, settings["method"]):
            found[name] = settings
    return found
