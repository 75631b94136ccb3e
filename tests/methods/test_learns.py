"""Every method learns something in a minute on the bundled blood cells, and does not collapse."""

from __future__ import annotations

import contract
import pytest
import torch

from twoviews import build, config, runs, train
from twoviews.methods import METHODS
from twoviews.probes.knn import knn

AUGMENTATION = "brightness=0.1 contrast=0.1 saturation=0.05 hue=0 grayscale_p=0"  # those of recipe=demo: colour tells cells apart
SECONDS = "backbone=thin16 train_size=5000 epochs=4 probe_every=0 precision=fp32 compile=auto device=cpu"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(METHODS))
def test_knn_is_a_point_above_random_initialisation_and_z_does_not_collapse(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = next(recipe for recipe in contract.recipes(name) if "thin" in recipe or recipe == "supervised")
    cfg = config.load("pretrain", [f"recipe={recipe}", "dataset=blood_cells", *AUGMENTATION.split(), *SECONDS.split()])
    parts = build.build(cfg)
    before = accuracy(parts)
    with runs.RunFolder(runs.create(tmp_path_factory.mktemp(name), "run", "{}")) as run:
        assert train.fit(cfg, parts, run)[0] == 0
    after = accuracy(parts)
    modules = parts.method.modules_to_probe()
    # of a view, as the method sees it: whole images are larger, and BatchNorm's running statistics do not fit them
    views = parts.embed_views(modules.get("z", modules["h"]), parts.dataset.split("val")[0], 1, seed=1, step=0)
    z = torch.nn.functional.normalize(views[0], dim=1)
    print(f"{name}: kNN {100 * before:.1f} to {100 * after:.1f} %, std of z {z.std(0).mean() * z.shape[1] ** 0.5:.2f} / sqrt(D)")
    slow = name in ("byol", "simsiam", "swav", "dino")  # start slowly
    assert after >= before + (0.01 if slow else 0.03)
    assert z.std(0).mean() >= 0.3 / z.shape[1] ** 0.5


def accuracy(parts: build.Parts) -> float:
    """Return kNN accuracy on val, k = 10, in [0, 1]."""
    (bank, labels), (queries, truth) = parts.dataset.split("train"), parts.dataset.split("val")
    h = parts.method.modules_to_probe()["h"]
    return knn(parts.embed(h, bank), labels, parts.embed(h, queries), truth, ks=[10])[10]
