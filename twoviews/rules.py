"""What values each key takes, beside the cards: a wrong one must be refused before torch, which takes a second, is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

CONF = Path(__file__).parent / "conf"


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
                " or ".join(show(c) for c in self.choices)
                if len(self.choices) < 4
                else "one of " + ", ".join(show(c) for c in self.choices)
            )
        else:
            text = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[self.type]
            low, high = (f"{bound:g}" if self.type is float else f"{bound}" for bound in (self.low, self.high))
            if self.above:
                text += f" above {low}" + (f", at most {high}" if self.high < math.inf else "")
            elif self.low > -math.inf:
                text += f" in [{low}, {high}]" if self.high < math.inf else f" of at least {low}"
        if self.items is not None:
            text = f"a list of {'two, low then high' if self.pair else f'at least {self.items}'}, each {text}"
        if self.words:
            text += ", or several in quotes ('knn,linear_precomp')"
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


def show(value: Any) -> str:
    """A value as it is typed: true and false, not Python's True and False."""
    return str(value).lower() if isinstance(value, bool) else str(value)


_p = Rule(float, 0, 1)
_strength = Rule(float, 0, 10)
_path = Rule(str, null=True)

SEED_TABLES = ("first_seed", "first_seed_settings", "second_seed", "second_seed_short", "race")
METHODS = tuple(sorted(f.stem for f in (Path(__file__).parent / "methods").glob("*.py") if f.stem not in ("__init__", "base")))

RULES: dict[str, Rule] = {
    # what is trained
    "recipe": Rule(str, choices=tuple(sorted(f.stem for f in (CONF / "recipe").glob("*.yaml")))),
    "method": Rule(str, choices=METHODS),
    "dataset": Rule(str, choices=("cifar10", "cifar100", "fashion_mnist", "fashion_mini", "folder")),
    "backbone": Rule(str, choices=("resnet18", "resnet34", "resnet50", "thin16", "thin32", "thin64")),
    "whiten_stem": Rule(bool),
    "train_on": Rule(str, choices=("train", "train+val", "train+val+test")),
    "train_size": Rule(int, 10, 100_000_000, null=True),
    "epochs": Rule(int, 1, 100_000),
    "batch_size": Rule(int, 2, 65_536),
    "drop_last": Rule(bool),
    # views
    "view_sizes": Rule(int, 8, 512, null=True, items=1),
    "crop_scale": Rule(float, 0, 1, above=True, items=2, pair=True),
    "crop_ratio": Rule(float, 0, 100, above=True, items=2, pair=True),
    "interpolation": Rule(str, choices=("bilinear", "bicubic")),
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
    "queue_size": Rule(int, 1, 10_000_000),
    "ema_decay": Rule(float, 0, 1),
    "symmetric": Rule(bool),
    "bn_splits": Rule(int, 1, 1024),
    # the optimiser
    "optimizer": Rule(str, choices=("sgd", "muon", "lars", "adam")),
    "learning_rate": Rule(float, 0, 1000, above=True, null=True),
    "base_learning_rate": Rule(float, 0, 1000, above=True),
    "min_learning_rate": Rule(float, 0, 1000),
    "momentum": Rule(float, 0, 0.9999),
    "nesterov": Rule(bool),
    "weight_decay": Rule(float, 0, 10),
    "decay_norms": Rule(bool),
    "schedule": Rule(str, choices=("cosine", "step", "constant")),
    "schedule_unit": Rule(str, choices=("step", "epoch")),
    "warmup_epochs": Rule(float, 0, 100_000),
    # once in a while, in epochs
    "probe_every": Rule(float, 0, 100_000),
    "checkpoint_every": Rule(float, 0, 100_000, above=True),
    "log_interval": Rule(int, 0, 100_000),
    # afterwards
    "probes": Rule(
        str,
        choices=(
            *("fast", "seeds", "all", "knn", "knn_euclidean", "knn_weighted", "second_seed", "lightly", "moco_demo", "wmse"),
            *("linear_precomp", "low_label", "linear_augm", "linear_augm_cached", "linear_sgd", "finetune", "low_label_finetune"),
        ),
        words=True,
    ),
    "solver": Rule(str, choices=("lbfgs", "adam", "sklearn"), null=True),
    "protocol": Rule(str, choices=("second_seed", "second_seed_v2")),
    "probe_epochs": Rule(int, 1, 100_000, null=True),
    "probe_learning_rate": Rule(float, 0, 1000, above=True, null=True),
    "probe_momentum": Rule(float, 0, 0.9999, null=True),
    "probe_weight_decay": Rule(float, 0, 10, null=True),
    "table": Rule(str, choices=SEED_TABLES, null=True),
    "transfer": Rule(str, choices=("cifar10", "cifar100", "fashion_mnist", "fashion_mini", "folder"), null=True),
    "load_epoch": Rule(int, 1, 100_000, null=True),
    # the machine and the place
    "seed": Rule(int, 0, 2**32 - 1),
    "device": Rule(str, choices=("auto", "cpu", "cuda", "mps")),
    "threads": Rule(int, 1, 1024, null=True),
    "precision": Rule(str, choices=("auto", "bf16", "fp32", "fp64")),
    "compile": Rule(str, choices=("auto", True, False)),
    "max_steps": Rule(int, 1, null=True),
    "runs_dir": Rule(str),
    "data_dir": _path,
    "image_size": Rule(int, 8, 1024, null=True),
    "on_bad": Rule(str, choices=("stop", "skip")),
    "resume": _path,
    "run_id": _path,
    "init": _path,
    "run": Rule(str),
    "profile": Rule(bool),
    "debug": Rule(bool),
    # `twoviews runs`
    "view": Rule(str, choices=("list", "best", "compare", *SEED_TABLES)),
    "format": Rule(str, choices=("markdown", "csv", "latex")),
    # `twoviews bench`
    "what": Rule(str, choices=("all", "views", "readouts", "ntxent", "startup", "job", "steps", "epoch"), words=True),
    "small": Rule(bool),
}

# Keys that mean something else to a verb: what `run=latest` must have, or anything.
OF_VERB: dict[tuple[str, str], Rule] = {("evaluate", key): replace(RULES[key], null=True) for key in ("dataset", "backbone", "batch_size")}


def rule(verb: str, key: str) -> Rule:
    """What values a key takes in a verb."""
    return OF_VERB.get((verb, key)) or RULES[key]
