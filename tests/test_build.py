"""Which code a machine uses for views and layers: C++, torch.compile or PyTorch."""

from __future__ import annotations

from pathlib import Path

import contract
import pytest
import torch
from tiny import change, only_run, read_json
from torch import nn
from view_helpers import SIMCLR, numbers, pictures, views_of

from twoviews import build, config, device
from twoviews.cli import main
from twoviews.cpu import batchnorm, resnet
from twoviews.cpu import views as cpp


def machine(name: str = "cpu", precision: str = "bf16", compile: bool = True) -> device.Machine:
    return device.Machine(torch.device(name), 1, precision, compile)


@pytest.mark.parametrize("words", ["", "precision=fp32", "compile=false"])
def test_a_run_uses_cpp_where_it_may_compile_and_for_layers_with_bfloat16_only(words: str) -> None:
    """The momentum encoder too."""
    if not device.compiler():
        pytest.skip("no C++ compiler on this machine")
    chosen = {"recipe": "moco_thin", "dataset": "fashion_mini", "device": "cpu", "threads": "1", "compile": "auto", "precision": "bf16"}
    chosen |= dict(word.split("=") for word in words.split())
    parts = build.build(config.load("pretrain", [f"{key}={value}" for key, value in chosen.items()]))
    blocks = [type(part) for part in parts.method.modules() if isinstance(part, tuple(resnet.FAST))]
    assert len(blocks) == 2 * (1 + 3)  # thin32 and its momentum copy: a network of three blocks each
    assert {block in resnet.FAST.values() for block in blocks} == {not words}
    assert build.layers_backend(parts.machine) == ("torch" if words else "cpp")
    compiled = words != "compile=false"
    assert build.views_backend(parts.machine) == ("cpp" if compiled else "torch")


def test_the_views_of_a_machine_that_may_compile_are_those_of_cpp() -> None:
    if not device.compiler():
        pytest.skip("no C++ compiler on this machine")
    views, images, u = views_of((3, 16, 16), 12, **SIMCLR), pictures(4, (3, 16, 16)), numbers(4)
    assert torch.equal(build.make_views(machine(), views)(images, u)[0], cpp.maker(views)(images, u)[0])
    assert build.make_views(machine(compile=False), views) is views


def test_without_a_compiler_everything_is_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cpp, batchnorm):
        monkeypatch.setattr(module, "library", lambda: None)
    views, method = views_of((3, 8, 8)), contract.tiny("simclr")
    classes = [type(part) for part in method.modules()]
    assert build.views_backend(machine()) == build.layers_backend(machine()) == "torch"
    assert build.make_views(machine(), views) is views
    assert [type(part) for part in build.to_device(method, machine()).modules()] == classes


def test_a_gpu_compiles_the_views_of_torch() -> None:
    views = views_of((3, 8, 8))
    assert build.views_backend(machine("cuda")) == "inductor"
    assert build.layers_backend(machine("cuda")) == "torch"
    compiled = build.make_views(machine("cuda"), views)
    assert compiled is not views
    assert compiled.__wrapped__ == views.__call__  # type: ignore[attr-defined]


def test_layers_are_channels_last_and_of_the_machines_dtype() -> None:
    for precision, dtype in (("bf16", torch.float32), ("fp32", torch.float32), ("fp64", torch.float64)):
        method = build.to_device(contract.tiny("simclr"), machine(precision=precision))
        assert {p.dtype for p in method.parameters()} == {dtype}
        convolutions = [part for part in method.modules() if isinstance(part, nn.Conv2d)]
        assert all(part.weight.is_contiguous(memory_format=torch.channels_last) for part in convolutions)


def test_a_run_is_not_resumed_with_views_or_layers_of_another_backend(
    tiny: list[str], fast: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *tiny, "max_steps=2"]) == 0
    path = only_run(tmp_path / "runs")
    for key in ("views_backend", "layers_backend"):
        assert read_json(path, "manifest.json")[key] == "torch"
        change(path, "manifest.json", **{key: "cpp"})
        capsys.readouterr()
        assert main(["pretrain", f"resume={path}"]) == 2
        message = capsys.readouterr().err
        assert key.split("_")[0] in message
        assert "cpp" in message
        assert "torch" in message
        change(path, "manifest.json", **{key: "torch"})


def test_a_key_that_the_method_lacks_is_reported_before_the_data_are_read() -> None:
    cfg = config.load("pretrain", ["recipe=simclr", "data_dir=nowhere", "device=cpu", "compile=false"])
    cfg["method"] = "moco"
    with pytest.raises(ValueError, match="method=moco: needs the key queue_size, which recipe=simclr does not set"):
        build.build(cfg)


def test_features_of_views_are_those_of_the_whole_batch_made_at_once(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = build.build(config.load("pretrain", [*tiny, "view_sizes=[12,12]"]))
    monkeypatch.setattr(build, "EMBEDDED", 7)
    module, images = nn.Flatten(), parts.images[:20]
    found = parts.embed_views(module, images, 2, seed=3, step=5)
    wanted = parts.views(images, parts.views.draw(3, 5, 20).to(parts.machine.dtype))
    assert len(found) == 2
    for ours, whole in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, whole.flatten(1).float())
    assert not torch.equal(found[0], found[1])
    (first,) = parts.embed_views(module, images, 1, seed=3, step=5)
    assert torch.equal(first, found[0])
