"""What to say about a word that is not a key, and the help text of each command."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from twoviews.config.schema import CONFIG_DIR, ROLES, RULES, keys, show

NEAR = 0.75  # similarity above which a name is suggested

# Names that other tools use, and what to do here.
ELSEWHERE = {
    "lr": "type learning_rate=, or base_learning_rate= for the rate at a batch of 256",
    "wd": "type weight_decay=",
    "bs": "type batch_size=",
    "model": "type backbone= for the network, method= for the method",
    "gpu": "type device=cuda; CUDA_VISIBLE_DEVICES chooses the GPU",
    **dict.fromkeys(("wandb", "logger"), "type track=tensorboard, wandb, trackio or mlflow"),
    "data": "type dataset= for its name, data_dir= for its folder",
    "data_path": "type data_dir=",
    "output_dir": "type runs_dir=",
    "opt": "type optimizer=",
    "tau": "type temperature=",
    "pretrained": "type init=",
    **dict.fromkeys(("arch", "encoder"), "type backbone="),
    **dict.fromkeys(
        ("gpus", "devices"),
        "not needed, because torchrun starts one process for each GPU: torchrun --nproc-per-node <GPUs> -m twoviews ...",
    ),
    **dict.fromkeys(
        ("accumulate_grad_batches", "gradient_accumulation_steps", "accumulation_steps", "accum_iter"),
        "not supported, because it is not the same as a larger batch: an image is compared only with those of its own small batch, and "
        "BatchNorm sees only those; type batch_size=, and use several processes where one has too little memory",
    ),
    **dict.fromkeys(("workers", "num_workers"), "not needed, because the images are in memory and no loader processes are used"),
    **dict.fromkeys(("max_epochs", "num_epochs"), "type epochs="),
    **dict.fromkeys(("amp", "fp16"), "type precision=bf16 or precision=fp32"),
    **dict.fromkeys(("checkpoint", "ckpt_path"), "type resume= to continue a run, init= to start from its weights only"),
}


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return `: did you mean <name>?` for a name that is near or starts with the word, else an empty text."""
    names = list(names)
    longer = [name for name in names if len(word) > 2 and name.startswith(word)]
    near = difflib.get_close_matches(word, names, 1, cutoff=NEAR) or longer
    return f": did you mean {near[0]}?" if near else ""


def hint(word: str, names: Iterable[str]) -> str:
    """Return what to type for a word that is none of `names`: the key for another tool's name, a value's key, or a near name."""
    key, equals, _ = word.partition("=")
    names = list(names)
    advice = ELSEWHERE.get(key, "")
    advised = re.findall(r"(\w+)=", advice)
    if advice and (not advised or set(advised) & set(names)):
        return f": {advice}"
    if not equals:
        for choice in ("recipe", "dataset", "backbone"):
            if word in RULES[choice].choices:
                return f": type {choice}={word}"
    return did_you_mean(key, names)


def no_such_key(key: str, verb: str, values: Mapping[str, Any]) -> str:
    """Return why a command has no such key, and what to type.

    Args:
        key: a word that is none of `values`.
        verb: one of `schema.VERBS`.
        values: the keys that the command has.
    """
    if key not in RULES:
        return hint(f"{key}=", values)
    verbs = RULES[key].verbs
    return f": method={values['method']} does not use it" if verb in verbs else f": it is a key of {', '.join(verbs)}"


def comments(verb: str) -> dict[str, str]:
    """Return the comment of each key: that of the verb's own file, else that of `base.yaml`."""
    files = [file for file in (CONFIG_DIR / "base.yaml", CONFIG_DIR / f"{verb}.yaml") if file.is_file()]
    lines = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return dict(re.findall(r"^(\w+):[^#\n]*#\s*(.*)$", lines, flags=re.M))


def recipes() -> dict[str, str]:
    """Return the first comment line of each recipe."""
    found = {}
    for file in sorted((CONFIG_DIR / "recipes").glob("*.yaml")):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        found[file.stem] = next((line.removeprefix("# ") for line in lines if line.startswith("# ") and "@package" not in line), "")
    return found


def usage(verb: str, values: Mapping[str, Any]) -> str:
    """Return the help of one command: each key that it takes with its value and comment, grouped by role.

    Args:
        verb: one of `schema.VERBS`.
        values: the resolved configuration, whose values are shown.
    """
    explained, text = comments(verb), f"usage: twoviews {verb} key=value ...\n\nKeys and their values"
    text += f" in recipe={values['recipe']}:\n" if verb == "pretrain" else ":\n"
    for role, purpose in ROLES.items():
        taken = [key for key in keys(role, verb=verb) if key in values]
        if taken:
            text += f"\n{role}: {'which run, and with which settings' if verb == 'evaluate' and role == 'science' else purpose}\n"
        for key in taken:
            text += f"  {f'{key}={show(values[key])}':<36} {explained.get(key, '')}".rstrip() + "\n"
    if verb == "pretrain":
        text += "\nrecipes (add recipe=<name> before --help to see its values)\n"
        text += "".join(f"  {name:<18} {line}\n" for name, line in recipes().items())
    listed = {"methods": "method", "data sets": "dataset", "backbones": "backbone", "probes": "probes"}
    return text + "".join(f"\n{title}: {', '.join(RULES[key].choices)}\n" for title, key in listed.items() if key in values)
