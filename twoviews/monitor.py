"""What is measured while a run trains: kNN on training images alone, and whether the projections collapse."""

import torch

from twoviews.build import Parts
from twoviews.data.dataset import stratified
from twoviews.probes.diagnostics import SPREAD_FLOOR, rankme, spread
from twoviews.probes.knn import knn
from twoviews.progress import Progress

MONITOR_BANK, MONITOR_K = 10_000, 10  # of kNN
MONITOR_Z = 2000  # images whose projections show a collapse


def monitor(parts: Parts, bar: Progress, done: int, *, advice: str) -> dict[str, float]:
    """Evaluate kNN on training images alone, and check for a collapse; print one line and return the values.

    Args:
        parts: of the run.
        bar: prints the line.
        done: steps.
        advice: what to change if z collapses.
    """
    train_images, train_labels = parts.dataset.split("train")
    val_images, val_labels = parts.dataset.split("val")
    modules = parts.method.modules_to_probe()
    # important: a stratified bank, not the first rows: an image folder is sorted by class
    rows = torch.from_numpy(stratified(train_labels.numpy(), min(MONITOR_BANK, len(train_labels)), seed=0))
    bank = parts.embed(modules["h"], train_images[rows], "probe")
    queries = parts.embed(modules["h"], val_images, "probe")
    # important: of a view: whole images can be larger, and shift what BatchNorm has seen until a healthy z looks collapsed
    z = parts.embed_views(modules.get("z", modules["h"]), parts.sample(MONITOR_Z), 1, seed=0, step=0)[0]
    k = min(MONITOR_K, len(bank))
    z_spread, rank = spread(z), rankme(z)
    values = {"z_spread": z_spread, "z_rankme": rank}
    text = f"epoch {done / parts.steps_per_epoch:.1f}: "
    if len(parts.dataset.classes) > 1:
        accuracy = knn(bank, train_labels[rows], queries, val_labels, ks=[k])[k]
        values = {f"val_knn{k}": accuracy, **values}
        learned = parts.labels is not None and len(parts.images) > len(train_labels)
        text += f"kNN-{k} on val{' (whose labels are trained on)' if learned else ''} {100 * accuracy:.1f} %, "
    bar.line(f"{text}spread of z {z_spread:.2f}, RankMe {rank:.0f}")
    if z_spread < SPREAD_FLOOR or rank < 2:
        bar.line(f"warning: z is collapsing: spread {z_spread:.2f} (healthy: 1), RankMe {rank:.1f} of {z.shape[1]}: {advice}")
    return values
