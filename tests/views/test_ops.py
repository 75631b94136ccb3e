"""The pixel operations equal torchvision's, in float and, up to rounding, in PIL."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounterWithBackend
from torchvision.transforms import functional as TF
from view_helpers import SIMCLR, boxes, factor, numbers, pictures, torchvision_crop, torchvision_jitter, views_of

from twoviews.views.spec import COLUMN, draw


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 32, 32), 32), ((3, 32, 32), 8), ((3, 32, 32), 48), ((1, 28, 28), 28), ((3, 24, 40), 32), ((3, 40, 24), 16), ((4, 20, 20), 13)],
)
def test_crops_and_flips_equal_torchvision(shape: tuple[int, int, int], size: int, dtype: torch.dtype, interpolation: str) -> None:
    views = views_of(shape, size, crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), flip_p=0.5, interpolation=interpolation)
    images, u = pictures(24, shape), numbers(24).to(dtype)
    (ours,) = views(images, u)
    flips = u[0, :, COLUMN["flip"]] < 0.5
    assert flips.any()
    assert not flips.all()
    for image, box, flip, view in zip(images, boxes(views, u[0]), flips, ours, strict=True):
        expected = torchvision_crop(image.to(dtype) / 255, box, bool(flip), size, interpolation)
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jitter_equals_torchvision_in_each_of_the_24_orders(dtype: torch.dtype) -> None:
    views = views_of((3, 12, 12), jitter_p=1.0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    images = pictures(96, (3, 12, 12))
    u = numbers(96, order=(torch.arange(96) % 24 + 0.5) / 24).to(dtype)
    (ours,) = views(images, u)
    for image, row, view in zip(images, u[0], ours, strict=True):
        torch.testing.assert_close(view, torchvision_jitter(image.to(dtype) / 255, row, views.specs[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_jitter_operation_alone_equals_torchvision(name: str) -> None:
    views = views_of((3, 12, 12), jitter_p=1.0, **{name: 0.5})
    images, u = pictures(32, (3, 12, 12)), numbers(32)
    (ours,) = views(images, u)
    for image, row, view in zip(images, u[0], ours, strict=True):
        torch.testing.assert_close(view, torchvision_jitter(image.double() / 255, row, views.specs[0]), rtol=0, atol=1e-4)
    assert (ours - images.double() / 255).abs().mean() > 0.01


def test_the_hue_of_gray_and_of_saturated_colours_equals_torchvision() -> None:
    corners = torch.tensor(list(itertools.product((0, 128, 255), repeat=3)), dtype=torch.uint8)  # with ties for the largest channel
    images = corners.view(27, 3, 1, 1).expand(27, 3, 4, 4).contiguous()
    views, u = views_of((3, 4, 4), jitter_p=1.0, hue=0.5), numbers(27)
    (ours,) = views(images, u)
    for image, row, view in zip(images, u[0], ours, strict=True):
        torch.testing.assert_close(view, torchvision_jitter(image.double() / 255, row, views.specs[0]), rtol=0, atol=1e-4)


def test_grayscale_equals_torchvision() -> None:
    images = pictures(4, (3, 8, 8))
    (ours,) = views_of((3, 8, 8), grayscale_p=1.0)(images, numbers(4))
    torch.testing.assert_close(ours, TF.rgb_to_grayscale(images.double() / 255, 3), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 9)])
def test_gaussian_blur_equals_torchvision(kernel: int, shape: tuple[int, int, int]) -> None:
    images, u = pictures(16, shape), numbers(16)
    (ours,) = views_of(shape, blur_p=1.0, blur_kernel=kernel)(images, u)
    for image, row, view in zip(images, u[0], ours, strict=True):
        sigma = 0.1 + 1.9 * float(row[COLUMN["sigma"]])
        torch.testing.assert_close(view, TF.gaussian_blur(image.double() / 255, [kernel, kernel], [sigma, sigma]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solarize_equals_torchvision_on_every_value(dtype: torch.dtype) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    (ours,) = views_of((1, 16, 16), solarize_p=1.0)(images, numbers(1).to(dtype))
    torch.testing.assert_close(ours, TF.solarize(images.to(dtype) / 255, 128 / 255), rtol=0, atol=1e-4)
    torch.testing.assert_close((ours * 255).round().to(torch.uint8), TF.solarize(images, 128), rtol=0, atol=0)


def test_all_operations_together_equal_torchvision() -> None:
    views = views_of((3, 32, 32), 24, **SIMCLR)
    images, u = pictures(48, (3, 32, 32)), numbers(48)
    (ours,) = views(images, u)
    for image, row, box, view in zip(images, u[0], boxes(views, u[0]), ours, strict=True):
        x = torchvision_crop(image.double() / 255, box, bool(row[COLUMN["flip"]] < 0.5), 24)
        x = torchvision_jitter(x, row, views.specs[0]) if row[COLUMN["jitter"]] < 0.8 else x
        x = TF.rgb_to_grayscale(x, 3) if row[COLUMN["grayscale"]] < 0.2 else x
        sigma = 0.1 + 1.9 * float(row[COLUMN["sigma"]])
        x = TF.gaussian_blur(x, [3, 3], [sigma, sigma]) if row[COLUMN["blur"]] < 0.5 else x
        x = TF.solarize(x, 128 / 255) if row[COLUMN["solarize"]] < 0.2 else x
        away = (x - 0.5).abs() > 0.01  # near the threshold of solarize, a rounding error can invert a pixel
        torch.testing.assert_close(view[away], x[away], rtol=0, atol=1e-4)


@pytest.mark.parametrize("operation", ["crop", "bicubic crop", "brightness", "contrast", "saturation", "hue", "grayscale", "blur"])
def test_operations_on_pil_images_differ_only_by_rounding(operation: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "crop": {"crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3)},
        "bicubic crop": {"crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3), "interpolation": "bicubic"},
        "grayscale": {"grayscale_p": 1.0},
        "blur": {"blur_p": 1.0},
    }
    views = views_of((3, 32, 32), 32, **changes.get(operation, {"jitter_p": 1.0, operation: 0.1}))
    images, u = pictures(24, (3, 32, 32)), numbers(24)
    if operation == "bicubic crop":  # PIL clamps the overshoot of a cubic after each axis, torchvision's tensors and we after both
        images = (images.float() * 0.5 + 64).to(torch.uint8)
    (ours,) = views(images, u)
    # PIL truncates hue and shift to 8 bits: two steps of 1/255 turn, and a turn is 6 x 255 levels of a channel.
    levels = {"crop": 1.01, "bicubic crop": 1.51, "grayscale": 1.01, "blur": 0.51, "hue": 12.0}.get(operation, 1.51)
    for image, row, box, view in zip(images, u[0], boxes(views, u[0]), ours, strict=True):
        x = Image.fromarray(image.permute(1, 2, 0).numpy())
        sigma = 0.1 + 1.9 * float(row[COLUMN["sigma"]])
        if operation.endswith("crop"):
            x = torchvision_crop(x, box, False, 32, views.specs[0].interpolation)
        elif operation == "grayscale":
            x = TF.rgb_to_grayscale(x, 3)
        elif operation == "blur":
            x = TF.gaussian_blur(x, [3, 3], [sigma, sigma])
        else:
            x = torchvision_jitter(x, row, views.specs[0])
        difference = (view.permute(1, 2, 0) * 255 - torch.from_numpy(np.array(x)).double()).abs()
        assert difference.max() < levels
        assert difference.mean() < 2


def test_several_operations_on_pil_images_differ_by_a_few_levels() -> None:
    views = views_of((3, 32, 32), jitter_p=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    images, u = pictures(48, (3, 32, 32)), numbers(48)
    (ours,) = views(images, u)
    pil_images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    theirs = [torchvision_jitter(image, row, views.specs[0]) for image, row in zip(pil_images, u[0], strict=True)]
    difference = (ours.permute(0, 2, 3, 1) * 255 - torch.from_numpy(np.stack([np.array(x) for x in theirs])).double()).abs()
    assert difference.mean() < 1.5
    assert difference.max() < 12


def test_a_view_with_all_operations_off_is_the_image() -> None:
    images = pictures(4, (3, 16, 16))
    (ours,) = views_of((3, 16, 16))(images, numbers(4))
    torch.testing.assert_close(ours, images.double() / 255, rtol=0, atol=1e-12)


def test_a_view_with_all_probabilities_0_is_the_image_whatever_the_strengths() -> None:
    images = pictures(4, (3, 16, 16))
    strong = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5}
    (ours,) = views_of((3, 16, 16), **strong)(images, numbers(4, jitter=0.0, flip=0.0, blur=0.0, grayscale=0.0, solarize=0.0))
    torch.testing.assert_close(ours, images.double() / 255, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["flip", "jitter", "grayscale", "blur", "solarize"])
def test_an_operation_changes_only_the_images_of_a_batch_that_drew_it(name: str) -> None:
    images = pictures(16, (3, 16, 16))
    strengths = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    on = torch.arange(16) % 3 == 0
    u = numbers(16, **{name: torch.where(on, 0.29, 0.31), "sigma": 0.9})
    (ours,) = views_of((3, 16, 16), **strengths, **{f"{name}_p": 0.3})(images, u)
    changed = (ours - images.double() / 255).flatten(1).abs().amax(1) > 1e-6
    assert torch.equal(changed, on)


def test_normalisation_is_the_last_operation() -> None:
    images, u = pictures(8, (3, 16, 16)), numbers(8)
    mean, std = (0.1, 0.5, 0.6), (0.2, 0.3, 0.4)
    (plain,), (normalised,) = views_of((3, 16, 16), **SIMCLR)(images, u), views_of((3, 16, 16), **SIMCLR, mean=mean, std=std)(images, u)
    torch.testing.assert_close(normalised, TF.normalize(plain, mean, std))


def test_views_stay_in_the_range_of_pixels() -> None:
    (ours,) = views_of((3, 16, 16), 24, **{**SIMCLR, "hue": 0.5})(pictures(64, (3, 16, 16)), draw(0, 0, 1, 64))
    assert ours.min() >= -1e-6
    assert ours.max() <= 1 + 1e-6


def test_with_one_channel_colour_operations_change_nothing_as_in_torchvision() -> None:
    images, u = pictures(32, (1, 28, 28)), numbers(32)
    jitter = {"jitter_p": 1.0, "brightness": 0.8, "contrast": 0.8}
    coloured = views_of((1, 28, 28), **jitter, saturation=0.8, hue=0.5, grayscale_p=1.0)
    (ours,), (without,) = coloured(images, u), views_of((1, 28, 28), **jitter)(images, u)
    torch.testing.assert_close(ours, without, rtol=0, atol=0)
    for image, row, view in zip(images, u[0], ours, strict=True):
        x = torchvision_jitter(image.double() / 255, row, coloured.specs[0])
        torch.testing.assert_close(TF.adjust_hue(TF.adjust_saturation(x, 0.3), 0.2), x, rtol=0, atol=0)  # nor in torchvision
        torch.testing.assert_close(view, x, rtol=0, atol=1e-4)


def test_28_pixels_stay_28() -> None:
    (ours,) = views_of((1, 28, 28), **{**SIMCLR, "hue": 0.0})(pictures(3, (1, 28, 28)), draw(0, 0, 1, 3))
    assert ours.shape == (3, 1, 28, 28)


def test_operations_without_a_colour_model_accept_four_channels() -> None:
    images, u = pictures(8, (4, 16, 16)), numbers(8)
    (ours,) = views_of((4, 16, 16), jitter_p=1.0, brightness=0.5, blur_p=1.0, flip_p=1.0)(images, u)
    for image, row, view in zip(images, u[0], ours, strict=True):
        sigma = 0.1 + 1.9 * float(row[COLUMN["sigma"]])
        bright = (TF.hflip(image.double() / 255) * factor(row, "brightness", 0.5)).clamp(0, 1)
        torch.testing.assert_close(view, TF.gaussian_blur(bright, [3, 3], [sigma, sigma]), rtol=0, atol=1e-4)


def test_making_views_is_a_pure_function() -> None:
    views, images, u = views_of((3, 16, 16), **SIMCLR), pictures(6, (3, 16, 16)), draw(0, 0, 1, 6)
    images_before, u_before = images.clone(), u.clone()
    first, second = views(images, u)[0], views(images, u)[0]
    assert torch.equal(first, second)
    assert torch.equal(images, images_before)
    assert torch.equal(u, u_before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_views_have_the_dtype_of_the_numbers(dtype: torch.dtype) -> None:
    views = views_of((3, 16, 16), **SIMCLR, mean=(0.5,) * 3, std=(0.2,) * 3)
    images, u = pictures(8, (3, 16, 16)), draw(0, 0, 1, 8)
    (ours,) = views(images, u.to(dtype))
    assert ours.dtype == dtype
    away = (views(images, u.double())[0] * 0.2 + 0.5 - 128 / 255).abs() > 1e-3
    torch.testing.assert_close(ours[away].double(), views(images, u.double())[0][away], rtol=0, atol=1e-3)


def compare_with_compiled(backend: Any, **changes: float) -> None:
    """Compare eager views with compiled ones at two steps: one graph, without a recompilation."""
    views, images = views_of((3, 16, 16), 16, **{**SIMCLR, "solarize_p": 0.0, **changes}), pictures(4, (3, 16, 16))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(views.__call__, backend=counter, dynamic=False, fullgraph=True)
    for step in range(2):
        u = views.draw(0, step, 4)
        torch.testing.assert_close(compiled(images, u)[0], views(images, u)[0], rtol=0, atol=1e-5)
    assert counter.frame_count == 1


def test_views_are_one_graph_that_computes_the_same() -> None:
    compare_with_compiled("aot_eager", brightness=0.0, saturation=0.0)  # fewer operations: tracing takes most of the time


@pytest.mark.slow
def test_views_compiled_by_inductor_equal_eager_ones() -> None:
    compare_with_compiled("inductor")
