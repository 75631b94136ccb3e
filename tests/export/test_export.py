"""`twoviews export`: the printed lines, run as they are, give the features of `load_backbone` in other libraries."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from command_helpers import refused
from torch import nn

from twoviews import export, pretrained, runs
from twoviews.cli import main
from twoviews.export import card, hub
from twoviews.models.resnet import build_backbone
from twoviews.runs import weights

MEAN, STD = {1: "0.286", 3: "0.491 0.482 0.447"}, {1: "0.353", 3: "0.247 0.243 0.262"}
NETS = [  # (backbone, channels, pixels)
    *(("resnet18", 3, 32), ("resnet18", 1, 28), ("resnet18", 3, 96), ("resnet18", 1, 96), ("resnet50", 3, 32)),
    *(("thin16", 3, 32), ("thin32", 1, 28), ("thin64", 3, 32)),
]


def weights_file(folder: Path, backbone: str, channels: int, size: int) -> Path:
    """Write random weights, BatchNorm's statistics included, as a run would, and return the file."""
    torch.manual_seed(0)
    net, _ = build_backbone(backbone, in_channels=channels, image_size=size)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    about = {"backbone": backbone, "in_channels": str(channels), "image_size": str(size), "mean": MEAN[channels], "std": STD[channels]}
    path = folder / f"{backbone}.safetensors"
    path.write_bytes(weights.to_bytes(net.state_dict(), about | {"recipe": "simclr", "dataset": "CIFAR-10", "run": ""}))
    return path


def features(path: Path, images: torch.Tensor) -> torch.Tensor:
    module = pretrained.load_backbone(path)
    with torch.no_grad():
        h: torch.Tensor = module((images - module.mean) / module.std)
    return h


def run_lines(lines: str, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run printed lines with given images in place of random ones, and return their `h`."""
    monkeypatch.setattr(torch, "rand", lambda *shape: images)
    monkeypatch.setattr(np.random, "rand", lambda *shape: images.double().numpy())
    names: dict[str, Any] = {}
    exec(lines, names)
    return torch.as_tensor(names["h"])


def written(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run an export and return the lines of code that it prints."""
    assert main(["export", *words]) == 0
    printed = capsys.readouterr().out
    return printed.split("):\n\n", 1)[1]


@pytest.mark.long
@pytest.mark.parametrize(("backbone", "channels", "size"), NETS)
@pytest.mark.parametrize("to", ["torchvision", "timm", "onnx"])
def test_the_printed_lines_give_the_same_features(
    backbone: str, channels: int, size: int, to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = weights_file(tmp_path, backbone, channels, size), tmp_path / "exported"
    if to == "timm" and backbone.startswith("thin"):
        said = refused(capsys, "export", f"run={file}", f"to={to}", f"export_dir={folder}")
        assert f"timm has no {backbone}: choose to=torchvision" in said
        assert not folder.exists()
        return
    lines = written(capsys, f"run={file}", f"to={to}", f"export_dir={folder}")
    images = torch.rand(5, channels, size, size)
    found, wanted = run_lines(lines, images, monkeypatch), features(file, images)
    assert found.shape == wanted.shape
    tolerance = 1e-4 if to == "onnx" else 1e-5
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
    if to != "onnx":
        assert (folder / "model.safetensors").read_bytes() == file.read_bytes()  # and so does `init=`
        assert torch.equal(features(folder / "model.safetensors", images), wanted)


@pytest.mark.long
def test_the_description_and_the_card_say_what_a_user_needs(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "exported"
    lines = written(capsys, f"run={finished}", f"export_dir={folder}")
    about = json.loads((folder / "config.json").read_text())
    assert about["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (about["backbone"], about["input_size"], about["num_features"]) == ("thin16", [1, 28, 28], 128)
    assert "pretrained_cfg" not in about, "timm has no such network"
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert "self-supervised-learning" in yaml.safe_load(front)["tags"]
    summary, manifest = runs.read_json(finished, runs.SUMMARY), runs.read_json(finished, runs.MANIFEST)
    for part in (str(manifest["commit"]), summary["dataset"], "MIT licence", "kNN k=10", "random initialisation"):
        assert part in body
    assert lines.replace(f"{folder}/", "") in body  # in the folder itself, the file has no path
    for folder in (tmp_path, finished.parent, Path(runs.read_config(finished)["data_dir"]).parent):
        assert str(folder) not in text, "where files lie is nobody's business"
    typed = "twoviews pretrain recipe=demo 'data_dir=/home/ada/my photos' init=/secret/a.pth seed=1"
    assert card._without_folders(typed) == "twoviews pretrain recipe=demo 'data_dir=my photos' init=a.pth seed=1"


def test_an_onnx_file_has_any_number_of_images_and_its_weights_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = weights_file(tmp_path, "thin16", 3, 32), tmp_path / "exported"
    written(capsys, f"run={file}", "to=onnx", f"export_dir={folder}")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.onnx"]
    graph = onnx.load(folder / "model.onnx").graph
    (images,), (h,) = graph.input, graph.output
    shape = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, h.name, shape[1:]) == ("images", "h", [3, 32, 32])
    assert isinstance(shape[0], str)


def test_an_onnx_file_with_other_features_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    class Wrong(onnxruntime.InferenceSession):
        def run(self, *args: Any) -> Any:
            return [super().run(*args)[0] * 1.001]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    file = weights_file(tmp_path, "thin16", 3, 32)
    assert main(["export", f"run={file}", "to=onnx", f"export_dir={tmp_path / 'exported'}"]) == 1
    assert "features in onnxruntime differ by" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = weights_file(tmp_path, "thin16", 3, 32)
    (tmp_path / "there").mkdir()
    for words, says in (
        ([f"run={file}", f"export_dir={tmp_path / 'there'}"], "exists already and is not overwritten"),
        ([f"run={file}", f"export_dir={tmp_path / 'no' / 'where'}"], "is no folder: create it"),
        ([f"run={file}", "to=tensorflow"], "to expects one of torchvision, timm, onnx, hub"),
        ([f"run={file}", "to=hub", "push=cells"], "expected user/name"),
        ([f"run={tmp_path / 'a.safetensors'}"], "no such file"),
        (["run=nowhere", f"runs_dir={tmp_path}"], "no such run folder"),
    ):
        assert says in refused(capsys, "export", *words)


@pytest.mark.parametrize("package", ["onnx", "huggingface_hub"])
def test_a_missing_package_is_named_before_any_work(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "hub"):
        monkeypatch.setattr(f"twoviews.export.{name}.find_spec", lambda name: None if name == package else object())
    words = ["to=onnx"] if package == "onnx" else ["to=hub", "push=ada/cells"]
    said = refused(capsys, "export", f"run={weights_file(tmp_path, 'thin16', 3, 32)}", *words, f"export_dir={tmp_path / 'a'}")
    assert f"needs {package}" in said
    assert "pip install 'twoviews[" in said


class Hub:
    """A stand-in for the Hugging Face Hub that keeps what it receives."""

    def __init__(self, *, broken: bool) -> None:
        self.broken = broken
        self.received: dict[str, bytes] = {}

    def create_repo(self, repository: str, *, exist_ok: bool, private: bool) -> None:
        assert (repository, exist_ok, private) == ("ada/cells", True, True)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.broken:
            raise OSError("the connection\nwas reset")
        self.received = {path.name: path.read_bytes() for path in folder_path.iterdir()}


@pytest.mark.long
@pytest.mark.parametrize("to", ["hub", "timm", "onnx"])
def test_the_card_of_a_push_loads_what_was_pushed(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(broken=False))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    folder, file = tmp_path / "exported", weights_file(tmp_path, "resnet18", 3, 32)
    lines = written(capsys, f"run={file}", f"to={to}", "push=ada/cells", f"export_dir={folder}")
    assert lines in (folder / "README.md").read_text()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name: str(folder / name))
    images = torch.rand(4, 3, 32, 32)
    wanted = features(file, images)
    found = run_lines(lines, images, monkeypatch)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert ("onnxruntime" in lines, "timm.create_model" in lines) == (to == "onnx", to == "timm")


def test_a_run_is_named_from_within_its_folder(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(finished)
    assert export.read(".", tmp_path).name == export.read(runs.BACKBONE, tmp_path).name == finished.name


@pytest.mark.long
def test_timms_keys_are_there_where_timm_builds_the_same_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size, same in ((32, False), (96, True)):
        written(capsys, f"run={weights_file(tmp_path, 'resnet18', 3, size)}", "to=timm", f"export_dir={tmp_path / str(size)}")
        assert ("pretrained_cfg" in json.loads((tmp_path / str(size) / "config.json").read_text())) == same


@pytest.mark.parametrize("broken", [False, True])
def test_a_push_sends_the_folder_and_a_failure_keeps_it(
    broken: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    there = Hub(broken=broken)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: there)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    folder, file = tmp_path / "exported", weights_file(tmp_path, "thin16", 3, 32)
    code = main(["export", f"run={file}", "to=hub", "push=ada/cells", f"export_dir={folder}"])
    out, err = capsys.readouterr()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    if broken:
        assert code == 1
        assert f"push=ada/cells: failed (the connection was reset); {folder} is complete: hf upload ada/cells {folder}" in err
    else:
        assert code == 0
        assert 'hf_hub_download("ada/cells", "model.safetensors")' in out
        assert there.received == {path.name: path.read_bytes() for path in folder.iterdir()}
        assert b'hf_hub_download("ada/cells"' in there.received["README.md"]


def test_nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match="not logged in at the Hugging Face Hub: type hf auth login"):
        hub.check("ada/cells")


@pytest.mark.long
def test_lines_for_the_hub_load_the_file_that_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    for backbone in ("resnet18", "thin32"):
        file = weights_file(tmp_path, backbone, 3, 32)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name, file=file: str(file))
        images = torch.rand(4, 3, 32, 32)
        lines, needs = export.formats.hub_lines(export.read(str(file), tmp_path), "hub", "ada/cells")
        assert "huggingface_hub" in needs
        with monkeypatch.context() as patch:
            torch.testing.assert_close(run_lines(lines, images, patch), features(file, images))
