"""`views.cpp` against the views in PyTorch, which other tests compare with torchvision: equal in float64, refused arguments, threads."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from view_helpers import SIMCLR, numbers, pictures, spec_of, views_of

from twoviews import device
from twoviews.cpu import views as cpp
from twoviews.cpu.views import maker
from twoviews.views.ops import ORDERS, ViewParams
from twoviews.views.spec import COLUMN, Views, draw

DKOBAK: dict[str, Any] = {
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
GRAY: dict[str, Any] = {**DKOBAK, "brightness": 0.95, "contrast": 0.95, "saturation": 0.0, "hue": 0.0, "grayscale_p": 0.0}


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if not device.compiler():
        pytest.skip("no C++ compiler on this machine")
    assert cpp.library() is not None


def both(views: Views, images: Tensor, u: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return each view, by C++ and by PyTorch."""
    return list(zip(maker(views)(images, u), views(images, u), strict=True))


def assert_equal_but_at_the_threshold(ours: Tensor, expected: Tensor) -> None:
    """Compare to 1e-9; next to solarize's threshold rounding may invert a pixel."""
    away = ((expected - 128 / 255).abs() > 1e-9) & ((expected - 127 / 255).abs() > 1e-9)
    torch.testing.assert_close(ours[away], expected[away], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "sizes", "changes"),
    [
        ((3, 32, 32), (32, 32), DKOBAK),
        ((3, 32, 32), (20, 20, 8), DKOBAK),
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
        ((3, 32, 32), (32, 20, 48), {**DKOBAK, "interpolation": "bicubic"}),
        ((1, 28, 28), (28, 11), {**GRAY, "crop_scale": (0.08, 1.0), "interpolation": "bicubic"}),
        ((3, 24, 40), (16,), {**SIMCLR, "interpolation": "bicubic"}),
    ],
)
def test_every_view_equals_torchs_in_float64(shape: tuple[int, int, int], sizes: tuple[int, ...], changes: dict[str, Any]) -> None:
    for ours, torchs in both(views_of(shape, *sizes, **changes), pictures(96, shape), draw(3, 7, len(sizes), 96).double()):
        assert_equal_but_at_the_threshold(ours, torchs)


def test_views_of_different_specifications_equal_torchs() -> None:
    specs = [
        spec_of(32, **{**SIMCLR, "blur_p": 1.0}),
        spec_of(32, **{**SIMCLR, "blur_p": 0.1, "solarize_p": 0.2}),
        spec_of(12, **{**DKOBAK, "interpolation": "bicubic"}),
    ]
    views = Views(image_shape=(3, 32, 32), specs=specs, mean=(0.5,) * 3, std=(0.25,) * 3)
    for ours, torchs in both(views, pictures(32, (3, 32, 32)), draw(3, 7, 3, 32).double()):
        assert_equal_but_at_the_threshold(ours / 4 + 0.5, torchs / 4 + 0.5)


def test_every_order_of_jitter_equals_torchs() -> None:
    views = views_of((3, 32, 32), 32, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, jitter_p=1.0)
    images = pictures(1, (3, 32, 32)).expand(24, -1, -1, -1)
    ((ours, torchs),) = both(views, images, numbers(24, order=(torch.arange(24) + 0.5) / 24, jitter=0.0))
    torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-9)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(ours[[0, 7, 15, 23]], 2))
    assert len(ORDERS) == 24


def test_float32_differs_by_rounding_only() -> None:
    make = maker(views_of((3, 32, 32), 32, 20, **DKOBAK))
    images, u = pictures(256, (3, 32, 32)), draw(0, 0, 2, 256)
    for ours, exact in zip(make(images, u), make(images, u.double()), strict=True):
        assert ours.dtype == torch.float32
        difference = (ours - exact).abs().amax((1, 2, 3))
        assert (difference > 1e-4).sum() <= 1, "more than a crop whose box rounds the other way in float64"


def test_normalisation_is_per_channel() -> None:
    views = views_of((3, 16, 16), 16, mean=(0.1, 0.5, 0.9), std=(0.2, 0.5, 2.0))
    ((ours, torchs),) = both(views, pictures(4, (3, 16, 16)), numbers(4))
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_the_number_of_threads_changes_no_bit(count: int) -> None:
    make, images, u = maker(views_of((3, 32, 32), 24, **SIMCLR)), pictures(count, (3, 32, 32)), numbers(count)
    before = torch.get_num_threads()
    alone = make(images, u)[0]
    try:
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            assert torch.equal(make(images, u)[0], alone)
    finally:
        torch.set_num_threads(before)


def test_views_are_channels_last_and_inputs_stay_as_they_are() -> None:
    views, images, u = views_of((3, 32, 32), 32, **SIMCLR), pictures(8, (3, 32, 32)), numbers(8)
    transposed = images.transpose(2, 3)  # not contiguous
    before = images.clone(), u.clone()
    ((view, torchs),) = both(views, transposed, u)
    assert view.shape == (8, 3, 32, 32)
    assert view.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(view, torchs, rtol=0, atol=1e-9)
    assert torch.equal(images, before[0])
    assert torch.equal(u, before[1])


def test_each_image_has_its_own_parameters() -> None:
    make = maker(views_of((3, 32, 32), 32, **SIMCLR))
    images, u = pictures(1, (3, 32, 32)).expand(16, -1, -1, -1), numbers(16)
    (one,), (reversed_,) = make(images, u), make(images.flip(0), u.flip(1))
    assert torch.equal(one, reversed_.flip(0))
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(one, 2))
    still = numbers(16, **dict.fromkeys(COLUMN, 0.5))
    still[0, :, :20] = 0.5
    (same,) = make(images, still)
    assert all(torch.equal(row, same[0]) for row in same)


def arguments(**changes: Any) -> dict[str, Any]:
    """Return arguments of `view` for four images of 8 pixels; a change is another argument, or one image's parameter."""
    given: dict[str, Any] = {"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "spec": spec_of(8), "mean": [0.0] * 3, "std": [1.0] * 3}
    params = dict.fromkeys(ViewParams._fields, 0.0) | dict.fromkeys(("height", "width"), 8.0)
    params |= dict.fromkeys(("brightness", "contrast", "saturation"), 1.0)
    tensors = {name: torch.full((4,), value) for name, value in params.items()}
    tensors |= {name: tensors[name].bool() for name in ("flip", "gray", "solarize")} | {"order": tensors["order"].long()}
    for name in changes.keys() & tensors:
        value = changes.pop(name)
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            tensors[name][2] = value
    return {**given, "params": ViewParams(**tensors), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(4, 3, 8, 8)}, "expected uint8 images"),
        ({"images": torch.zeros(3, 8, 8, dtype=torch.uint8)}, "expected uint8 images"),
        ({"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8, device="meta")}, "expected uint8 images"),
        *(({name: torch.zeros(3)}, f"expected 4 values of {name}") for name in ViewParams._fields),
        ({"sigma": torch.zeros(4, device="meta")}, "expected 4 values of sigma on the CPU"),
        ({"top": torch.zeros(4).half()}, "expected float32 or float64 parameters"),
        ({"top": torch.zeros(4).long()}, "expected float32 or float64 parameters"),
        ({"spec": spec_of(8, blur_kernel=17), "sigma": 1.0}, "blur_kernel 17 does not fit"),
        ({"spec": spec_of(8, blur_kernel=17), "sigma": float("nan")}, "blur_kernel 17 does not fit"),
        ({"mean": [0.0]}, "expected 3 means and deviations"),
        ({"std": [1.0] * 4}, "expected 3 means and deviations"),
        ({"images": torch.zeros(4, 2, 8, 8, dtype=torch.uint8), "mean": [0.0] * 2, "std": [1.0] * 2, "hue": 0.1}, "without colour"),
        *(({name: 1.0}, "leaves its image") for name in ("top", "left")),
        *(({name: value}, "leaves its image") for name in ("top", "left") for value in (-1.0, float("nan"))),
        *(({name: value}, "leaves its image") for name in ("height", "width") for value in (0.0, 9.0, float("nan"))),
        *(({"order": value}, r"expected orders in \[0, 24\)") for value in (-1, 24)),
    ],
    ids=str,
)
def test_arguments_of_another_form_are_refused_before_memory_is_touched(changes: dict[str, Any], message: str) -> None:
    assert cpp.view(**arguments()).shape == (4, 3, 8, 8)
    with pytest.raises(ValueError, match=message):
        cpp.view(**arguments(**changes))


def test_images_of_another_shape_than_the_views_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected images of shape \(N, 3, 32, 32\), got \(2, 3, 16, 16\)"):
        maker(views_of((3, 32, 32), 32))(pictures(2, (3, 16, 16)), numbers(2))


def test_numbers_of_another_number_of_views_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        maker(views_of((3, 32, 32), 32, 32))(pictures(2, (3, 32, 32)), numbers(2))


def test_no_images_give_no_views() -> None:
    assert maker(views_of((3, 32, 32), 24))(pictures(0, (3, 32, 32)), numbers(0))[0].shape == (0, 3, 24, 24)


def test_without_a_compiler_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "library", lambda: None)
    with pytest.raises(RuntimeError, match=r"views\.cpp could not be compiled"):
        maker(views_of((3, 8, 8)))
    with pytest.raises(RuntimeError, match=r"views\.cpp could not be compiled"):
        cpp.view(**arguments())
