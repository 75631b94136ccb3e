"""Type, range and role of every key.

A wrong value is rejected here, before torch is imported (which takes a second).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

CONFIG_DIR = Path(__file__).parent
PATH_KEYS = ("resume", "init", "run", "run_id", "runs_dir", "data_dir", "classes", "to", "export_dir")  # their values are taken literally
ROLES = {
    "science": "decides the trained weights",
    "machine": "where and how fast it runs",
    "output": "what is written and where",
    "probe": "how the backbone is evaluated",
}


@dataclass(frozen=True)
class Rule:
    """Which values a key accepts, and what the key is for.

    Args:
        type: int, float, bool or str; dict: of what differs in one view.
        low, high: closed range of a number; `above` excludes `low` itself.
        choices: if not empty, the only accepted values.
        null: whether `null` is accepted (the program then chooses, and prints its choice).
        items: None for a single value; otherwise the minimum length of a list.
        pair: the list has two items, low then high.
        words: the value is one choice, or several choices separated by commas.
        word: that is accepted beside numbers.
        role: one of `ROLES`. Science keys identify a run and stay fixed when it is resumed.
        verbs: the commands that take the key; empty: those of the role.
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
    word: str = ""
    role: str = ""
    verbs: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            names = [show(c) for c in self.choices]
            text = " or ".join(names) if len(names) < 4 else "one of " + ", ".join(names)
        else:
            kinds = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
            text = kinds.get(self.type) or f"{{key:value}} of {', '.join(OF_A_VIEW)}"
            low, high = (f"{bound:g}" if self.type is float else f"{bound}" for bound in (self.low, self.high))
            if self.above:
                text += f" above {low}" + (f", at most {high}" if self.high < math.inf else "")
            elif self.low > -math.inf:
                text += f" in [{low}, {high}]" if self.high < math.inf else f" of at least {low}"
        if self.items is not None:
            form = "[low,high]" if self.pair else "in brackets, not empty" if self.items else "in brackets"
            text = f"a list {form}, each item {text}"
        if self.words:
            text += ", or several with commas, in quotes"
        if self.word:
            text += f" or {self.word}"
        return text + (" or null" if self.null else "")

    def accepts(self, value: Any) -> bool:
        """Return whether a value has the right type and is in range."""
        if value is None:
            return self.null
        if self.word and value == self.word:
            return True
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
        if self.type is dict:
            return isinstance(value, dict) and all(key in OF_A_VIEW and OF_A_VIEW[key].accepts(item) for key, item in value.items())
        return isinstance(value, bool)


def show(value: Any) -> str:
    """Return a value as the user types it: `true`, `null` and `[1,2]`, not Python's `True`, `None` and `[1, 2]`."""
    if isinstance(value, list):
        return f"[{','.join(map(show, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{show(item)}' for key, item in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _role(role: str, verbs: tuple[str, ...], **rules: Rule) -> dict[str, Rule]:
    return {key: replace(rule, role=role, verbs=rule.verbs or verbs) for key, rule in rules.items()}


_probability = Rule(float, 0, 1)
_strength = Rule(float, 0, 10)
_path = Rule(str, null=True)
_benchmarks = ("views", "evaluation", "ntxent", "startup", "job", "steps", "methods", "embed", "scaling")
_backbones = ("resnet18", "resnet34", "resnet50", "thin16", "thin32", "thin64")
_data_sets = ("cifar10", "cifar100", "fashion_mnist", "fashion_mini", "blood_cells", "folder")

REFERENCE_TABLES = ("p3i0t", "p3i0t_settings", "dkobak", "dkobak_short", "race")
METHODS = tuple(sorted(f.stem for f in (CONFIG_DIR.parent / "methods").glob("*.py") if f.stem not in ("__init__", "base")))
VERBS = ("pretrain", "evaluate", "data", "embed", "export", "runs", "report", "methods", "bench", "doctor")
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
EXPORTS = ("torchvision", "timm", "onnx", "hub")  # values of `to` in `export`
READING = ("pretrain", "evaluate", "data")  # commands that read a data set

# One line per key. Its role decides which commands take it, and what may change when a run is resumed.
RULES: dict[str, Rule] = {
    **_role(
        "science",
        ("pretrain",),
        # what is trained
        recipe=Rule(str, choices=tuple(sorted(f.stem for f in (CONFIG_DIR / "recipes").glob("*.yaml"))), verbs=("pretrain", "runs")),
        method=Rule(str, choices=METHODS, verbs=("pretrain", "runs")),
        dataset=Rule(str, choices=_data_sets, verbs=(*READING, "runs")),
        image_size=Rule(int, 8, 1024, null=True, verbs=READING),
        layout=Rule(str, choices=("auto", "classes", "splits"), verbs=READING),
        classes=Rule(str, null=True, verbs=READING),
        background=Rule(str, choices=("white", "gray", "black"), null=True, verbs=(*READING, "embed")),
        value_range=Rule(float, -1e38, 1e38, null=True, items=2, pair=True, verbs=(*READING, "embed")),
        on_bad=Rule(str, choices=("stop", "skip"), verbs=(*READING, "embed")),
        backbone=Rule(str, choices=_backbones, verbs=("pretrain", "evaluate", "runs")),
        stem_init=Rule(str, choices=("he", "torch"), null=True),
        whiten_stem=Rule(bool),
        init=_path,
        train_on=Rule(str, choices=("train", "train+val", "train+val+test")),
        train_size=Rule(int, 10, 100_000_000, null=True),
        epochs=Rule(int, 1, 100_000),
        batch_size=Rule(int, 2, 65_536, verbs=("pretrain", "evaluate")),
        drop_last=Rule(bool),
        seed=Rule(int, 0, 2**32 - 1, verbs=("pretrain", "evaluate")),
        # views
        view_sizes=Rule(int, 8, 512, null=True, items=1),
        views=Rule(dict, null=True, items=1),
        crop_scale=Rule(float, 0, 1, above=True, items=2, pair=True),
        crop_ratio=Rule(float, 0, 100, above=True, items=2, pair=True),
        interpolation=Rule(str, choices=("bilinear", "bicubic")),
        flip_p=_probability,
        jitter_p=_probability,
        brightness=_strength,
        contrast=_strength,
        saturation=_strength,
        hue=Rule(float, 0, 0.5),
        grayscale_p=_probability,
        blur_p=_probability,
        blur_kernel=Rule(int, choices=tuple(range(3, 24, 2))),
        blur_sigma=Rule(float, 0, 100, above=True, items=2, pair=True),
        solarize_p=_probability,
        normalize=Rule(bool),
        # method
        hidden_dims=Rule(int, 1, 65_536, items=0),
        out_dim=Rule(int, 1, 65_536),
        hidden_bn=Rule(bool),
        output_bn=Rule(bool),
        one_forward=Rule(bool),
        temperature=Rule(float, 0, 1000, above=True),
        queue_size=Rule(int, 1, 10_000_000, null=True),
        ema_decay=_probability,
        ema_decay_end=_probability,
        predictor_dims=Rule(int, 1, 65_536, items=0),
        prototypes=Rule(int, 2, 1_000_000),
        sinkhorn_temperature=Rule(float, 0, 1000, above=True),
        sinkhorn_iterations=Rule(int, 1, 1000),
        queue_from=_probability,
        freeze_until=_probability,
        teacher_temperature=Rule(float, 0, 1000, above=True),
        teacher_temperature_end=Rule(float, 0, 1000, above=True),
        centre_decay=_probability,
        probe_teacher=Rule(bool),
        off_diagonal=Rule(float, 0, 1000),
        loss_scale=Rule(float, 0, 1000, above=True),
        invariance=Rule(float, 0, 100_000),
        variance=Rule(float, 0, 100_000),
        covariance=Rule(float, 0, 100_000),
        whitening_size=Rule(int, 2, 65_536),
        whitening_eps=Rule(float, 0, 1),
        symmetric=Rule(bool),
        bn_splits=Rule(int, 1, 1024),
        sync_bn=Rule(bool),
        # optimiser
        optimizer=Rule(str, choices=("sgd", "muon", "lars", "larc", "adam", "adamw")),
        learning_rate=Rule(float, 0, 1000, above=True, null=True),
        base_learning_rate=Rule(float, 0, 1000, above=True),
        min_learning_rate=Rule(float, 0, 1000),
        momentum=Rule(float, 0, 0.9999),
        nesterov=Rule(bool),
        weight_decay=Rule(float, 0, 10),
        weight_decay_end=Rule(float, 0, 10, null=True),
        decay_norms=Rule(bool),
        clip_gradients=Rule(float, 0, 1_000_000, above=True, null=True),
        schedule=Rule(str, choices=("cosine", "step", "constant")),
        schedule_unit=Rule(str, choices=("step", "epoch", "next_epoch")),
        warmup_epochs=Rule(float, 0, 100_000),
        precision=Rule(str, choices=("auto", "bf16", "tf32", "fp32", "fp64"), verbs=("pretrain", "evaluate", "embed", "doctor")),
    ),
    **_role(
        "machine",
        ("pretrain", "evaluate", "embed", "report", "doctor"),
        device=Rule(str, choices=("auto", "cpu", "cuda", "mps"), verbs=("pretrain", "evaluate", "embed", "report", "bench", "doctor")),
        threads=Rule(int, 1, 1024, null=True, word="polite"),
        compile=Rule(str, choices=("auto", True, False), verbs=("pretrain", "evaluate", "doctor")),
        deterministic=Rule(bool, verbs=("pretrain", "evaluate")),
        wait_seconds=Rule(float, 1, 1_000_000, verbs=("pretrain", "evaluate")),
    ),
    **_role(
        "output",
        ("pretrain",),
        runs_dir=Rule(str, verbs=VERBS),
        data_dir=Rule(str, null=True, verbs=("pretrain", "evaluate", "data", "embed", "report", "bench")),
        to=Rule(str, null=True, verbs=("data", "embed", "export", "report")),
        export_dir=Rule(str, null=True, verbs=("export",)),
        push=Rule(str, null=True, verbs=("export",)),
        duplicates=Rule(bool, verbs=("data",)),
        run=Rule(str, verbs=("evaluate", "embed", "export", "runs", "report")),
        run_id=_path,
        resume=_path,
        max_steps=Rule(int, 1, null=True, verbs=("pretrain", "evaluate")),
        checkpoint_every=Rule(float, 0, 100_000, above=True),
        checkpoint_seconds=Rule(float, 0, 100_000),
        log_interval=Rule(int, 0, 100_000),
        track=Rule(str, choices=TRACKERS, null=True, words=True),
        table=Rule(str, choices=REFERENCE_TABLES, null=True, verbs=("pretrain", "evaluate")),
        profile=Rule(bool),
        debug=Rule(bool, verbs=VERBS),
        view=Rule(str, choices=("list", "best", "compare", "show", "delete", *REFERENCE_TABLES), verbs=("runs",)),
        sort=Rule(str, choices=("time", "name", "knn", "linear", "seconds"), verbs=("runs",)),
        format=Rule(str, choices=("auto", "text", "markdown", "csv", "latex"), verbs=("runs",)),
        sure=Rule(bool, verbs=("runs",)),
        what=Rule(str, choices=("all", *_benchmarks, "epoch"), words=True, verbs=("bench",)),
        small=Rule(bool, verbs=("bench",)),
    ),
    **_role(
        "probe",
        ("pretrain", "evaluate"),
        probes=Rule(
            str,
            choices=(
                *("fast", "reference", "all", "knn", "knn_euclidean", "knn_weighted", "dkobak", "lightly", "moco_demo", "wmse"),
                *("linear_precomp", "low_label", "linear_augm", "linear_augm_cached", "linear_sgd", "finetune", "low_label_finetune"),
            ),
            words=True,
        ),
        baselines=Rule(bool),
        probe_every=Rule(float, 0, 100_000, verbs=("pretrain",)),
        solver=Rule(str, choices=("lbfgs", "adam", "sklearn"), null=True),
        protocol=Rule(str, choices=("dkobak", "dkobak_v2")),
        probe_epochs=Rule(int, 1, 100_000, null=True),
        probe_learning_rate=Rule(float, 0, 1000, above=True, null=True),
        probe_momentum=Rule(float, 0, 0.9999, null=True),
        probe_weight_decay=Rule(float, 0, 10, null=True),
        load_epoch=Rule(int, 1, 100_000, null=True, verbs=("evaluate",)),
        transfer=Rule(str, choices=_data_sets, null=True, verbs=("evaluate",)),
    ),
}

# What an entry of `views` may hold: how many views it describes, and keys of `ViewSpec` in which they differ from the others.
_FIRST = ("crop_scale", "crop_ratio", "interpolation", "flip_p", "jitter_p", "brightness", "contrast", "saturation", "hue")
_VIEW_KEYS = (*_FIRST, "grayscale_p", "blur_p", "blur_kernel", "blur_sigma", "solarize_p")
OF_A_VIEW = {"count": Rule(int, 1, 64), **{key: RULES[key] for key in _VIEW_KEYS}}


def rule(verb: str, key: str) -> Rule:
    """Return the rule of a key in one command. In `evaluate` and `runs` science keys may be null: any run, or the value of the run."""
    own = RULES[key]
    if verb == "runs" and key in ("recipe", "method", "dataset", "backbone", "run"):
        return replace(own, null=True)
    if verb == "export" and key == "to":
        return replace(own, choices=EXPORTS, null=False)
    return replace(own, null=True) if verb == "evaluate" and own.role == "science" else own


def keys(*roles: str, verb: str | None = None) -> list[str]:
    """Return the keys of these roles (all if none is named), of one command or of all."""
    return [k for k, rule in RULES.items() if (not roles or rule.role in roles) and (verb is None or verb in rule.verbs)]
