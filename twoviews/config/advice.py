"""Warnings: settings that are accepted, but with which a method seldom learns, and what to change when it collapses."""

from typing import Any

from twoviews.config.files import recipes_of
from twoviews.config.load import Config

FAR = 5  # times above the largest, or below the smallest value of the recipes
AGAINST_COLLAPSE = {
    "moco": "lower base_learning_rate, raise ema_decay, or set bn_splits above 1",
    "moco_v3": "lower base_learning_rate, or raise ema_decay",
    "nnclr": "lower base_learning_rate, or raise queue_size",
    "byol": "raise ema_decay, lower base_learning_rate, and keep hidden_bn=true",
    "simsiam": "lower base_learning_rate, and keep hidden_bn=true and output_bn=true",
    "swav": "lower sinkhorn_temperature, or raise queue_size if the batch is small",
    "dino": "lower teacher_temperature, or raise centre_decay or ema_decay",
    "barlow_twins": "lower base_learning_rate, or raise batch_size",
    "vicreg": "raise variance, or lower invariance or base_learning_rate",
    "wmse": "set whitening_eps=0, raise whitening_size, or lower out_dim",
}


def against_collapse(method: str) -> str:
    """Return what to change when the projections of a method collapse."""
    return AGAINST_COLLAPSE.get(method, "lower base_learning_rate, or raise temperature")


def warnings(cfg: Config) -> list[str]:
    """Return a line for each value that the user chose and that is far from those of the recipes."""
    found = []
    if "temperature" in cfg.given:
        used = [recipe["temperature"] for recipe in recipes_of(cfg.method).values()]
        found += _far(f"temperature={cfg.temperature:g}", cfg.temperature, used, f"recipes of {cfg.method}")
    if {"learning_rate", "base_learning_rate", "batch_size", "optimizer"} & set(cfg.given):
        kind = "adam" if cfg.optimizer == "adamw" else cfg.optimizer
        used = [_base_rate(recipe) for recipe in recipes_of().values() if recipe["optimizer"] == kind]
        rate = _base_rate(cfg)
        found += _far(f"the rate for a batch of 256, {rate:g},", rate, used, f"recipes with optimizer={kind}")
    if cfg.optimizer in ("lars", "larc") and cfg.backbone.startswith("thin"):
        found.append(
            f"optimizer={cfg.optimizer} was made for large batches and networks; the recipes for {cfg.backbone} have optimizer=muon"
        )
    return found


def _base_rate(settings: dict[str, Any]) -> float:
    """Return the peak rate for a batch of 256."""
    rate: float = settings["base_learning_rate"]
    return rate if settings["learning_rate"] is None else settings["learning_rate"] * 256 / settings["batch_size"]


def _far(name: str, value: float, used: list[float], where: str) -> list[str]:
    """Return a warning if a value is far from those that are used."""
    if not used or min(used) / FAR <= value <= max(used) * FAR:
        return []
    return [f"{name} is far from the {where} ({min(used):g} to {max(used):g}): it may learn little, or diverge"]
