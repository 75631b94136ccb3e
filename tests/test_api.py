"""The Python interface: `from twoviews import ...`."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny as small
import torch
from command_helpers import pretrained
from safetensors.torch import save_file

import twoviews
from twoviews import build, config, runs
from twoviews.probes.embed import embed


def test_the_names_of_the_python_interface_exist() -> None:
    from twoviews import Views, ViewSpec, knn, linear, load_backbone, nt_xent, pretrain

    assert set(twoviews.__all__) == {"Views", "ViewSpec", "nt_xent", "knn", "linear", "load_backbone", "pretrain"}
    assert all(map(callable, (Views, ViewSpec, knn, linear, load_backbone, nt_xent, pretrain)))
    with pytest.raises(AttributeError, match="nosuch"):
        twoviews.nosuch  # noqa: B018 - the look-up is the test


def test_pretrain_from_python_is_the_command(few: Path, tmp_path: Path, fast: None) -> None:
    command = pretrained(few, tmp_path / "command", "probes='knn,linear_precomp'")
    path = twoviews.pretrain(
        "fashion_thin",
        dataset="fashion_mnist",
        data_dir=str(few),
        backbone="thin16",
        batch_size=small.FEW_BATCH,
        epochs=1,
        probes="knn,linear_precomp",
        probe_every=0,
        threads=1,
        compile=False,
        precision="fp32",
        device="cpu",
        max_steps=None,
        crop_scale=[0.3, 1.0],
        runs_dir=tmp_path / "a, b=c",
    )
    assert path.parent == tmp_path / "a, b=c"
    assert (path / runs.BACKBONE).read_bytes() == (command / runs.BACKBONE).read_bytes()
    with pytest.raises(ValueError, match="did you mean epochs"):
        twoviews.pretrain("fashion_thin", epoch=1)


def test_load_backbone_gives_the_runs_own_features(finished: Path, data: Path) -> None:
    module = twoviews.load_backbone(finished)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    parts = build.build(config.load("pretrain", small.words(data, finished.parent, f"init={finished}")))
    images = parts.dataset.test_images
    with torch.no_grad():
        h = module((images.float() / 255 - module.mean) / module.std)
    torch.testing.assert_close(h, parts.embed(parts.method.backbone, images), rtol=1e-4, atol=1e-5)
    mean, std = module.mean.flatten().tolist(), module.std.flatten().tolist()
    again = embed(module, images, mean=mean, std=std, device=torch.device("cpu"), autocast=parts.machine.autocast)
    row = twoviews.knn(again[:50], parts.dataset.test_labels[:50], again[50:], parts.dataset.test_labels[50:], ks=[1])
    assert 0 <= row[1] <= 1


@pytest.mark.parametrize("form", ["missing", "of another program"])
def test_load_backbone_refuses_files_that_twoviews_did_not_write(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.safetensors"
    if form != "missing":
        save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"no such file|not written by TwoViews"):
        twoviews.load_backbone(path)


def test_init_reaches_the_momentum_encoder_too(tiny: list[str], finished: Path) -> None:
    words = [word for word in tiny if not word.startswith("recipe=")]
    cfg = config.load("pretrain", [*words, "recipe=moco", f"init={finished}", "queue_size=128", "bn_splits=4"])
    method = build.build(cfg).method
    loaded = build.load_backbone(finished).state_dict()
    for key, value in method.momentum_encoder[0].state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, loaded[key].to(value.dtype)), key
