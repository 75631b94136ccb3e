"""`init=` with checkpoints of other programs: every name is matched, or the file is refused, and what was matched is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightly.models
import payloads
import pytest
import timm
import torch
import torchvision
from command_helpers import refused
from safetensors.torch import save_file
from torch import Tensor, nn

from twoviews import foreign
from twoviews.models.resnet import build_backbone

Named = dict[str, Tensor]


def small_stem(net: nn.Module) -> nn.Module:
    """Return a ResNet of torchvision or timm with the stem for small images."""
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


def resnet18() -> nn.Module:
    return small_stem(torchvision.models.resnet18())


def prefixed(net: nn.Module, *prefixes: str) -> Named:
    return {f"{prefix}{name}": x for prefix in prefixes for name, x in net.state_dict().items()}


def sequential(net: nn.Module) -> Named:
    """Return a ResNet's weights as lightly's tutorials name them."""
    return prefixed(nn.Sequential(*list(net.children())[:-1]), "backbone.")


def generator() -> Named:
    return sequential(lightly.models.ResNetGenerator("resnet-18"))


SOURCES: dict[str, Callable[[], Any]] = {
    "torchvision": lambda: resnet18().state_dict(),
    "timm": lambda: small_stem(timm.create_model("resnet18", num_classes=7)).state_dict(),
    "lightly, torchvision's net": lambda: {"state_dict": sequential(resnet18()), "epoch": 3},
    "lightly, ResNetGenerator": lambda: {"state_dict": generator()},
    "solo-learn": lambda: {"state_dict": prefixed(resnet18(), "backbone.") | {"projector.0.weight": torch.zeros(3, 3)}},
    "MoCo": lambda: {"state_dict": prefixed(resnet18(), "module.encoder_q.", "module.encoder_k."), "arch": "resnet18"},
    "p3i0t": lambda: prefixed(resnet18(), "enc."),
    "compiled": lambda: {"model": prefixed(resnet18(), "_orig_mod.")},
    "old PyTorch": lambda: {name: x for name, x in resnet18().state_dict().items() if not name.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("source", list(SOURCES))
def test_every_weight_of_another_programs_resnet_is_matched(source: str, tmp_path: Path) -> None:
    content = SOURCES[source]()
    torch.save(content, tmp_path / "a.pth")
    net, _ = build_backbone("resnet18", in_channels=3, image_size=32)
    line = foreign.start_from(net, tmp_path / "a.pth")
    assert "100 of 100 weights matched" in line
    assert "random" not in line
    tensors = content.get("state_dict", content.get("model", content))
    values = [x for x in tensors.values() if x.is_floating_point()]  # MoCo's first encoder is the one that is taken
    for x in net.state_dict().values():
        assert not x.is_floating_point() or any(x.shape == y.shape and torch.equal(x, y) for y in values)
    if source == "MoCo":
        assert torch.equal(net.conv1.weight, tensors["module.encoder_q.conv1.weight"])
        assert "begin with state_dict.module.encoder_q." in line


def test_a_checkpoint_gives_the_features_of_its_own_net(tmp_path: Path) -> None:
    theirs = nn.Sequential(*list(resnet18().children())[:-1]).eval()
    torch.save(prefixed(theirs, "backbone."), tmp_path / "a.ckpt")
    ours, _ = build_backbone("resnet18", in_channels=3, image_size=32)
    foreign.start_from(ours, tmp_path / "a.ckpt")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs(images).flatten(1))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_another_first_convolution_stays_random_and_the_line_says_so(tmp_path: Path, suffix: str) -> None:
    theirs = torchvision.models.resnet18().state_dict()
    path = tmp_path / f"imagenet{suffix}"
    if suffix == ".pth":
        torch.save(theirs, path)
    else:
        save_file(theirs, path)
    net, _ = build_backbone("resnet18", in_channels=3, image_size=32)
    before = net.conv1.weight.clone()
    line = foreign.start_from(net, path)
    assert line == (
        f"init={path}: 99 of 100 weights matched; conv1.weight keeps its initial values, because it is 64x3x7x7 there and 64x3x3x3 here; "
        "not used: fc.bias, fc.weight"
    )
    assert torch.equal(net.conv1.weight, before)
    assert torch.equal(net.layer4[1].conv2.weight, theirs["layer4.1.conv2.weight"])


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "deep.pth")
    net, _ = build_backbone("resnet18", in_channels=3, image_size=128)
    with pytest.raises(ValueError, match=r"deep\.pth: not this backbone: it also has layer1\.2\.bn1\.bias, .* and \d+ more: choose"):
        foreign.start_from(net, tmp_path / "deep.pth")
    torch.save(resnet18().state_dict(), tmp_path / "shallow.pth")
    net, _ = build_backbone("resnet34", in_channels=3, image_size=32)
    before = net.state_dict()["layer1.0.conv1.weight"].clone()
    with pytest.raises(ValueError, match=r"shallow\.pth: not this backbone: it lacks layer1\.2\.conv1\.weight"):
        foreign.start_from(net, tmp_path / "shallow.pth")
    assert torch.equal(net.state_dict()["layer1.0.conv1.weight"], before)


@pytest.mark.parametrize(
    ("content", "says"), [(b"noise", "damaged"), (b"", "damaged"), ({"epoch": 3}, "holds no tensors"), ([1, 2], "holds no tensors")]
)
def test_a_file_that_is_no_checkpoint_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert says in refused(capsys, "pretrain", "recipe=cifar_thin", "dataset=fashion_mini", f"init={path}", f"runs_dir={tmp_path}")
    assert not list(tmp_path.glob("*/"))


@pytest.mark.parametrize("form", payloads.FORMS)
def test_code_in_a_checkpoint_is_never_run(form: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "a.pth", tmp_path / "ran"
    path.write_bytes(payloads.make(form, marker))
    with pytest.raises(ValueError, match=r"a\.pth: (holds|damaged)"):
        foreign.read(path)
    assert not marker.exists()
