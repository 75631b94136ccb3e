"""`pixels.cpp` against the views in torch, which are themselves compared with torchvision: the same function to rounding."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from test_views import SIMCLR, numbers, pictures, views_of
from tiny import change, only_run
from torch import Tensor

from twoviews import build, config, device, native
from twoviews.cli import main
from twoviews.pixels import ORDERS
from twoviews.views import COLUMN, Views, draw

SECOND_SEED: dict[str, Any] = {
    "crop_scale": (0.2, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "flip_p": 0.5,
    "jitter_p": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale_p": 0.2,
}
GRAY: dict[str, Any] = {**SECOND_SEED, "brightness": 0.95, "contrast": 0.95, "saturation": 0.0, "hue": 0.0, "grayscale_p": 0.0}


@pytest.fixture(autouse=True)
def _compiler() -> None:
    assert device.compiler(), "these tests need g++ or clang++"
    assert native.library() is not None


def both(views: Views, images: Tensor, u: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each view by the library and by torch."""
    return list(zip(views.on_cpu(images, u), views(images, u), strict=True))


@pytest.mark.parametrize(
    ("shape", "sizes", "changes"),
    [
        ((3, 32, 32), (32, 32), SECOND_SEED),
        ((3, 32, 32), (20, 20, 8), SECOND_SEED),
        ((3, 32, 32), (32, 48), SIMCLR),
        ((3, 32, 32), (24,), {**SIMCLR, "blur_p": 1.0, "blur_kernel": 9}),
        ((1, 28, 28), (28, 20), {**GRAY, "blur_p": 0.5, "solarize_p": 0.5}),
        ((3, 24, 40), (32, 17), SIMCLR),
        ((3, 40, 24), (16,), SIMCLR),
        ((4, 20, 20), (13, 20), {**GRAY, "solarize_p": 0.3}),
        ((2, 9, 9), (9, 4), {"contrast": 0.5, "jitter_p": 1.0}),
        ((1, 1, 1), (1, 3), {"brightness": 0.5, "jitter_p": 1.0, "flip_p": 0.5}),
        ((3, 8, 8), (5,), {"blur_p": 1.0, "blur_kernel": 9, "blur_sigma": (1e-9, 1e-9)}),
        ((3, 32, 32), (1, 2), {"crop_scale": (0.01, 1.0), "crop_ratio": (0.2, 5.0)}),
        ((3, 32, 32), (32, 20, 48), {**SECOND_SEED, "interpolation": "bicubic"}),
        ((1, 28, 28), (28, 11), {**GRAY, "crop_scale": (0.08, 1.0), "interpolation": "bicubic"}),
        ((3, 24, 40), (16,), {**SIMCLR, "interpolation": "bicubic"}),
    ],
)
def test_every_view_equals_torchs_in_float64(shape: tuple[int, int, int], sizes: tuple[int, ...], changes: dict[str, Any]) -> None:
    views = views_of(shape, *sizes, **changes)
    images = pictures(96, shape)
    u = draw(3, 7, len(sizes), 96).double()
    for ours, torchs in both(views, images, u):
        away = ((torchs - 128 / 255).abs() > 1e-9) & ((torchs - 127 / 255).abs() > 1e-9)  # at solarize's threshold rounding turns a pixel
        torch.testing.assert_close(ours[away], torchs[away], rtol=0, atol=1e-9)


def test_every_order_of_jitter_equals_torchs() -> None:
    views = views_of((3, 32, 32), 32, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, jitter_p=1.0)
    images = pictures(1, (3, 32, 32)).expand(24, -1, -1, -1)
    ((ours, torchs),) = both(views, images, numbers(24, order=(torch.arange(24) + 0.5) / 24, jitter=0.0))
    torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-9)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(ours[[0, 7, 15, 23]], 2))
    assert len(ORDERS) == 24


def test_float32_differs_by_rounding_only() -> None:
    views = views_of((3, 32, 32), 32, 20, **SECOND_SEED)
    images, u = pictures(256, (3, 32, 32)), draw(0, 0, 2, 256)
    exact = views.on_cpu(images, u.double())
    for ours, truth in zip(views.on_cpu(images, u), exact, strict=True):
        assert ours.dtype == torch.float32
        difference = (ours - truth).abs().amax((1, 2, 3))
        assert (difference > 1e-4).sum() <= 1, "more than a crop whose box rounds the other way in float64"


def test_normalisation_is_per_channel() -> None:
    views = views_of((3, 16, 16), 16, mean=(0.1, 0.5, 0.9), std=(0.2, 0.5, 2.0))
    ((ours, torchs),) = both(views, pictures(4, (3, 16, 16)), numbers(4))
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_the_number_of_threads_changes_no_bit(threads: int, count: int) -> None:
    views, images, u = views_of((3, 32, 32), 24, **SIMCLR), pictures(count, (3, 32, 32)), numbers(count)
    before = torch.get_num_threads()
    alone = views.on_cpu(images, u)[0]
    try:
        torch.set_num_threads(threads)
        assert torch.equal(views.on_cpu(images, u)[0], alone)
    finally:
        torch.set_num_threads(before)


def test_views_are_channels_last_and_inputs_stay_as_they_are() -> None:
    views, images, u = views_of((3, 32, 32), 32, **SIMCLR), pictures(8, (3, 32, 32)), numbers(8)
    turned = images.transpose(2, 3)  # not contiguous
    before = images.clone(), u.clone()
    (view,) = views.on_cpu(turned, u)
    assert view.shape == (8, 3, 32, 32)
    assert view.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(view, views(turned, u)[0], rtol=0, atol=1e-9)
    assert torch.equal(images, before[0])
    assert torch.equal(u, before[1])


def test_each_image_has_its_own_choices() -> None:
    views = views_of((3, 32, 32), 32, **SIMCLR)
    images = pictures(1, (3, 32, 32)).expand(16, -1, -1, -1)
    u = numbers(16)
    (one,) = views.on_cpu(images, u)
    (other,) = views.on_cpu(images.flip(0), u.flip(1))
    assert torch.equal(one, other.flip(0))
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(one, 2))
    still = numbers(16, **dict.fromkeys(COLUMN, 0.5))
    still[0, :, :20] = 0.5
    (same,) = views.on_cpu(images, still)
    assert all(torch.equal(row, same[0]) for row in same)


IMAGES, TABLE = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0.0, 0, 8, 8, 0, 0, 1, 2, 3, 1, 1, 1, 0, 0, 0, 0]).repeat(4, 1)


def with_column(column: int, value: float) -> Tensor:
    table = TABLE.clone()
    table[2, column] = value
    return table


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": IMAGES.float()}, "expected uint8 images"),
        ({"images": IMAGES[0]}, "expected uint8 images"),
        ({"table": TABLE[:3]}, r"expected a float table \(4, 16\)"),
        ({"table": TABLE[:, :15]}, "expected a float table"),
        ({"table": TABLE.half()}, "expected a float table"),
        ({"table": TABLE.long()}, "expected a float table"),
        ({"size": 0}, "do not fit"),
        ({"blur_kernel": 4}, "do not fit"),
        ({"blur_kernel": 17, "table": with_column(14, 1.0)}, "do not fit"),
        ({"mean": [0.0]}, "do not fit"),
        ({"std": [1.0] * 4}, "do not fit"),
        ({"images": IMAGES[:, :2], "mean": [0.0] * 2, "std": [1.0] * 2, "table": with_column(12, 0.1)}, "no colour"),
        *(
            ({"table": with_column(column, value)}, "leaves its image")
            for column, value in ((0, 1), (0, -1), (1, 1), (2, 9), (3, 9), (3, 0))
        ),
        ({"table": with_column(0, float("nan"))}, "leaves its image"),
    ],
)
def test_other_forms_are_refused_before_memory_is_touched(changes: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {"images": IMAGES, "table": TABLE, "size": 8, "blur_kernel": 3, "cubic": False}
    good |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    assert native.view(**good).shape == (4, 3, 8, 8)
    with pytest.raises(ValueError, match=says):
        native.view(**{**good, **changes})


def test_images_of_another_shape_than_the_views_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected images of shape \(N, 3, 32, 32\), got \(2, 3, 16, 16\)"):
        views_of((3, 32, 32), 32).on_cpu(pictures(2, (3, 16, 16)), numbers(2))


def test_no_images_give_no_views() -> None:
    assert views_of((3, 32, 32), 24).on_cpu(pictures(0, (3, 32, 32)), numbers(0))[0].shape == (0, 3, 24, 24)


# ---- compiling it ----


def test_it_is_compiled_once_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build_library = native.library.__wrapped__
    assert build_library() is not None
    (made,) = (tmp_path / "twoviews").iterdir()
    stamp = made.stat().st_mtime_ns
    assert build_library() is not None
    assert [path.stat().st_mtime_ns for path in (tmp_path / "twoviews").iterdir()] == [stamp]
    monkeypatch.setattr(native, "FLAGS", [*native.FLAGS, "-DOTHER"])
    build_library()
    assert len(list((tmp_path / "twoviews").iterdir())) == 2, "other flags, another library"


def test_a_compiler_without_openmp_makes_a_library_of_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, fake = device.compiler(), tmp_path / "cxx"
    fake.write_text(f'#!/bin/sh\ncase " $* " in *" -fopenmp "*) echo "unsupported option" >&2; exit 1;; esac\nexec {real} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "compiler", lambda: str(fake))
    assert native.library.__wrapped__() is not None
    assert f"{fake} has no OpenMP" in capsys.readouterr().out


def test_x1_a_library_that_another_user_could_have_written_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.library.__wrapped__() is not None
    (tmp_path / "twoviews").chmod(0o777)
    assert native.library.__wrapped__() is None
    assert "could have been written by another user" in capsys.readouterr().out
    (tmp_path / "twoviews").chmod(0o755)
    real = Path.stat
    foreign = lambda self, **more: os.stat_result([*real(self, **more)[:4], 54321, *real(self, **more)[5:10]])  # noqa: E731
    monkeypatch.setattr(Path, "stat", foreign)
    assert native.library.__wrapped__() is None


@pytest.mark.parametrize("broken", ["no compiler", "a compiler that fails", "a cache that cannot be written"])
def test_without_a_library_torch_makes_the_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if broken == "no compiler":
        monkeypatch.setattr(native, "compiler", lambda: None)
    elif broken == "a compiler that fails":
        monkeypatch.setattr(native, "FLAGS", ["--no-such-flag"])
    else:
        (tmp_path / "twoviews").write_text("in the way")
    assert native.library.__wrapped__() is None
    said = capsys.readouterr().out
    assert ("pixels.cpp could not be compiled or loaded" in said) == (broken != "no compiler")
    assert said.count("\n") <= 2
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(native, "library", lambda: None)
    views = views_of((3, 8, 8), 8)
    with pytest.raises(RuntimeError, match="could not be compiled"):
        views.on_cpu(pictures(2, (3, 8, 8)), numbers(2))
    machine = device.Machine(torch.device("cpu"), 1, "fp32", True)
    assert build.views_by(machine) == "torch"
    assert build.views_on(machine, views) == views


def test_a_gpu_compiles_the_views_of_torch() -> None:
    machine = device.Machine(torch.device("cuda"), 1, "bf16", True)
    views = views_of((3, 8, 8), 8)
    assert build.views_by(machine) == "torch.compile"
    assert build.views_on(machine, views) not in (views, views.on_cpu)


def test_a_run_uses_it_where_it_may_compile_and_only_there(tiny: list[str]) -> None:
    for word, used in (("compile=true", True), ("compile=false", False)):
        cfg = config.load("pretrain", [*(w for w in tiny if not w.startswith("compile=")), word])
        parts = build.build(cfg)
        assert (build.views_on(parts.machine, parts.views) == parts.views.on_cpu) == used


@pytest.mark.parametrize("what", ["views", "layers"])
def test_a_run_does_not_go_on_with_what_another_makes(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    assert main(["pretrain", *tiny, "max_steps=2"]) == 0
    path = only_run(tmp_path / "runs")
    assert json.loads((path / "manifest.json").read_text())[f"{what}_by"] == "torch"
    change(path, "manifest.json", **{f"{what}_by": "C++"})
    capsys.readouterr()
    assert main(["pretrain", f"resume={path}"]) == 2
    assert f"torch makes the {what} here, C++ did then" in capsys.readouterr().err
