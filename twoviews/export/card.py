"""The model card: what the backbone is, how it was trained and evaluated, how to load it, and under which licence its data are."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from twoviews.config.schema import PATH_KEYS, keys
from twoviews.export.trained import Trained
from twoviews.report.text import accuracy_table

LICENCES = {  # of data sets, by the beginning of their titles
    "CIFAR-10": "CIFAR-10 and CIFAR-100 (Krizhevsky 2009) have no stated licence; the authors ask for a citation.",
    "Fashion-MNIST": "Fashion-MNIST (Xiao et al. 2017) is under the MIT licence.",
    "blood cells": "The blood cells (Acevedo et al. 2020) are under CC BY 4.0.",
}
UNKNOWN = "Whoever gives these weights away must have the right to do so for the images that they were trained on."


def card(trained: Trained, lines: str, needs: str) -> str:
    """Return a model card in Markdown, with the metadata that the Hugging Face Hub reads.

    Args:
        trained: that is described.
        lines: Python code that loads it.
        needs: packages of that code.
    """
    about = trained.about
    parts = [
        f"---\n{yaml.safe_dump(_metadata(trained), sort_keys=False)}---\n",
        f"# {trained.name}\n",
        f"An image encoder ({trained.backbone}) that turns an image of {trained.size} x {trained.size} pixels "
        f"({'gray' if trained.channels == 1 else 'colour'}) into {trained.embed_dim} features. {_training(trained)}\n",
        f"## How to use it\n\n```bash\npip install {needs}\n```\n\n```python\n{lines}```\n",
        f"## Training data\n\n{about.get('dataset', 'not known')}. "
        f"{next((text for title, text in LICENCES.items() if about.get('dataset', '').lower().startswith(title.lower())), UNKNOWN)}\n",
    ]
    if trained.summary.get("evaluations"):
        parts.append(f"## Accuracy\n{accuracy_table(trained.summary)}\n\nThe backbone was frozen. Each row names its protocol.\n")
    if trained.manifest:
        parts.append(_provenance(trained))
    return "\n".join(parts)


def _metadata(trained: Trained) -> dict[str, Any]:
    method = trained.config.get("method")
    tags = ["self-supervised-learning", "image-feature-extraction", "twoviews", *([method] if method else [])]
    return {"license": "other", "license_name": "see-training-data", "pipeline_tag": "image-feature-extraction", "tags": tags}


def _training(trained: Trained) -> str:
    if not trained.summary:
        return f"It was trained by TwoViews with the recipe `{trained.about.get('recipe', 'not known')}`."
    labels = "with the labels of" if trained.summary["uses_labels"] else "without the labels of"
    return (
        f"It was trained {labels} its images, by the method `{trained.summary['method']}` with the recipe `{trained.summary['recipe']}`: "
        f"{trained.summary['epochs']} epochs, batch {trained.summary['batch_size']}, seed {trained.summary['seed']}."
    )


def _provenance(trained: Trained) -> str:
    manifest, science = trained.manifest, set(keys("science", verb="pretrain")) - set(PATH_KEYS)
    versions = ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
    settings = yaml.safe_dump({key: value for key, value in trained.config.items() if key in science}, sort_keys=False)
    return (
        f"## How to repeat it\n\n```bash\n{_without_folders(manifest.get('command', ''))}\n```\n\n"
        f"Commit {manifest.get('commit') or 'not known'}; {manifest.get('machine', '')}; {versions}.\n\n"
        f"<details><summary>Settings</summary>\n\n```yaml\n{settings}```\n\n</details>\n"
    )


def _without_folders(command: str) -> str:
    """Return a command whose paths are names alone: where files lie on one's machine is nobody's business."""
    pairs = [word.partition("=") for word in shlex.split(command)]
    return " ".join(shlex.quote(f"{key}{sign}{Path(value).name if key in PATH_KEYS else value}") for key, sign, value in pairs)
