"""Views against torchvision: pixels, the distributions of every parameter, and randomness that is a function."""

from __future__ import annotations

import colorsys
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from twoviews.views import COLUMN, TRIES, P, Views, draw, philox

ORDERS = list(itertools.permutations(range(4)))  # of brightness 0, contrast 1, saturation 2, hue 3
OFF: dict[str, Any] = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "interpolation": "bilinear",
    "flip_p": 0.0,
    "jitter_p": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "grayscale_p": 0.0,
    "blur_p": 0.0,
    "blur_kernel": 3,
    "blur_sigma": (0.1, 2.0),
    "solarize_p": 0.0,
}
SIMCLR: dict[str, Any] = {
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "flip_p": 0.5,
    "jitter_p": 0.8,
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "grayscale_p": 0.2,
    "blur_p": 0.5,
    "solarize_p": 0.2,
}
P_VALUE = 1e-3  # of every test of a distribution below; seeds are fixed, so none of them can fail by chance


def views_of(shape: tuple[int, int, int], *sizes: int, **changes: Any) -> Views:
    """Views of unnormalised pixels in [0, 1], every operation off but the changed ones."""
    plain: dict[str, Any] = {"mean": (0.0,) * shape[0], "std": (1.0,) * shape[0]}
    return Views(image_shape=shape, view_sizes=sizes or (shape[1],), **{**OFF, **plain, **changes})


def pictures(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """(n, C, H, W) uint8: smooth and noisy at once, all values from 0 to 255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, shape[0], 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    noise = torch.rand(n, *shape, generator=generator)
    return ((0.6 * smooth + 0.4 * noise) * 255).round().to(torch.uint8)


def numbers(n: int, seed: int = 0, **columns: float | Tensor) -> Tensor:
    """(1, n, P) float64 from the real stream, with some columns set by hand."""
    u = draw(seed, 0, 1, n).double()
    for name, value in columns.items():
        u[0, :, COLUMN[name]] = torch.as_tensor(value, dtype=torch.float64)
    return u


def factor(u: Tensor, name: str, strength: float) -> float:
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * float(u[COLUMN[name]])


def torchvision_jitter(x: Any, u: Tensor, views: Views) -> Any:
    """ColorJitter's functional operations on one image, in the order that the image's own number picks."""
    operations = [
        lambda x: TF.adjust_brightness(x, factor(u, "brightness", views.brightness)),
        lambda x: TF.adjust_contrast(x, factor(u, "contrast", views.contrast)),
        lambda x: TF.adjust_saturation(x, factor(u, "saturation", views.saturation)),
        lambda x: TF.adjust_hue(x, (2 * float(u[COLUMN["hue"]]) - 1) * views.hue) if views.hue else x,
    ]
    for which in ORDERS[int(u[COLUMN["order"]] * 24)]:
        x = operations[which](x)
    return x


def torchvision_crop(x: Any, box: list[int], flip: bool, size: int, interpolation: str = "bilinear") -> Any:
    x = TF.resized_crop(x, *box, [size, size], TF.InterpolationMode(interpolation), antialias=True)
    x = x.clamp(0, 1) if interpolation == "bicubic" and isinstance(x, Tensor) else x  # as PIL's 8 bits cut it off
    return TF.hflip(x) if flip else x


def boxes(views: Views, u: Tensor) -> list[list[int]]:
    return torch.stack(views.crop_box(u), 1).long().tolist()


# --- pixels ---------------------------------------------------------------------------------------------------------


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
        torch.testing.assert_close(view, torchvision_jitter(image.to(dtype) / 255, row, views), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_jitter_operation_alone_equals_torchvision(name: str) -> None:
    views = views_of((3, 12, 12), jitter_p=1.0, **{name: 0.5})
    images, u = pictures(32, (3, 12, 12)), numbers(32)
    (ours,) = views(images, u)
    for image, row, view in zip(images, u[0], ours, strict=True):
        torch.testing.assert_close(view, torchvision_jitter(image.double() / 255, row, views), rtol=0, atol=1e-4)
    assert (ours - images.double() / 255).abs().mean() > 0.01


def test_the_hue_of_gray_and_of_saturated_colours_equals_torchvision() -> None:
    corners = torch.tensor(list(itertools.product((0, 128, 255), repeat=3)), dtype=torch.uint8)  # ties of the largest channel
    images = corners.view(27, 3, 1, 1).expand(27, 3, 4, 4).contiguous()
    views, u = views_of((3, 4, 4), jitter_p=1.0, hue=0.5), numbers(27)
    (ours,) = views(images, u)
    for image, row, view in zip(images, u[0], ours, strict=True):
        torch.testing.assert_close(view, torchvision_jitter(image.double() / 255, row, views), rtol=0, atol=1e-4)


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
        x = torchvision_jitter(x, row, views) if row[COLUMN["jitter"]] < 0.8 else x
        x = TF.rgb_to_grayscale(x, 3) if row[COLUMN["grayscale"]] < 0.2 else x
        sigma = 0.1 + 1.9 * float(row[COLUMN["sigma"]])
        x = TF.gaussian_blur(x, [3, 3], [sigma, sigma]) if row[COLUMN["blur"]] < 0.5 else x
        x = TF.solarize(x, 128 / 255) if row[COLUMN["solarize"]] < 0.2 else x
        away = (x - 0.5).abs() > 0.01  # beside the threshold of solarize a rounding error flips a pixel
        torch.testing.assert_close(view[away], x[away], rtol=0, atol=1e-4)


@pytest.mark.parametrize("what", ["crop", "bicubic crop", "brightness", "contrast", "saturation", "hue", "grayscale", "blur"])
def test_the_pil_path_differs_by_rounding_only(what: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "crop": {"crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3)},
        "bicubic crop": {"crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3), "interpolation": "bicubic"},
        "grayscale": {"grayscale_p": 1.0},
        "blur": {"blur_p": 1.0},
    }
    views = views_of((3, 32, 32), 32, **changes.get(what, {"jitter_p": 1.0, what: 0.1}))
    images, u = pictures(24, (3, 32, 32)), numbers(24)
    if what == "bicubic crop":  # PIL cuts a cubic's overshoot off after each of its two axes, torchvision's tensors and this after both
        images = (images.float() * 0.5 + 64).to(torch.uint8)
    (ours,) = views(images, u)
    # PIL keeps hue and shift in 8 bits, both cut off: two steps of 1/255 turn, and a turn is 6 x 255 levels of a channel.
    levels = {"crop": 1.01, "bicubic crop": 1.51, "grayscale": 1.01, "blur": 0.51, "hue": 12.0}.get(what, 1.51)
    for image, row, box, view in zip(images, u[0], boxes(views, u[0]), ours, strict=True):
        x = Image.fromarray(image.permute(1, 2, 0).numpy())
        sigma = 0.1 + 1.9 * float(row[COLUMN["sigma"]])
        if what.endswith("crop"):
            x = torchvision_crop(x, box, False, 32, views.interpolation)
        elif what == "grayscale":
            x = TF.rgb_to_grayscale(x, 3)
        elif what == "blur":
            x = TF.gaussian_blur(x, [3, 3], [sigma, sigma])
        else:
            x = torchvision_jitter(x, row, views)
        difference = (view.permute(1, 2, 0) * 255 - torch.from_numpy(np.array(x)).double()).abs()
        assert difference.max() < levels
        assert difference.mean() < 2


def test_one_operation_after_another_in_pil_stays_within_a_few_levels() -> None:
    views = views_of((3, 32, 32), jitter_p=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    images, u = pictures(48, (3, 32, 32)), numbers(48)
    (ours,) = views(images, u)
    theirs = [torchvision_jitter(Image.fromarray(i.permute(1, 2, 0).numpy()), row, views) for i, row in zip(images, u[0], strict=True)]
    difference = (ours.permute(0, 2, 3, 1) * 255 - torch.from_numpy(np.stack([np.array(x) for x in theirs])).double()).abs()
    assert difference.mean() < 1.5
    assert difference.max() < 12


def test_nothing_on_is_the_identity() -> None:
    images = pictures(4, (3, 16, 16))
    (ours,) = views_of((3, 16, 16))(images, numbers(4))
    torch.testing.assert_close(ours, images.double() / 255, rtol=0, atol=1e-12)


def test_probability_0_is_the_identity_whatever_the_strengths() -> None:
    images = pictures(4, (3, 16, 16))
    strong = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5}
    (ours,) = views_of((3, 16, 16), **strong)(images, numbers(4, jitter=0.0, flip=0.0, blur=0.0, grayscale=0.0, solarize=0.0))
    torch.testing.assert_close(ours, images.double() / 255, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["flip", "jitter", "grayscale", "blur", "solarize"])
def test_within_one_batch_an_operation_reaches_only_the_images_that_drew_it(name: str) -> None:
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


# --- one channel and other numbers of channels ----------------------------------------------------------------------


def test_with_one_channel_colour_operations_are_identities_as_in_torchvision() -> None:
    images, u = pictures(32, (1, 28, 28)), numbers(32)
    jitter = {"jitter_p": 1.0, "brightness": 0.8, "contrast": 0.8}
    coloured = views_of((1, 28, 28), **jitter, saturation=0.8, hue=0.5, grayscale_p=1.0)
    (ours,), (without,) = coloured(images, u), views_of((1, 28, 28), **jitter)(images, u)
    torch.testing.assert_close(ours, without, rtol=0, atol=0)
    for image, row, view in zip(images, u[0], ours, strict=True):
        x = torchvision_jitter(image.double() / 255, row, coloured)
        torch.testing.assert_close(TF.adjust_hue(TF.adjust_saturation(x, 0.3), 0.2), x, rtol=0, atol=0)  # what torchvision does
        torch.testing.assert_close(view, x, rtol=0, atol=1e-4)


def test_28_pixels_stay_28() -> None:
    (ours,) = views_of((1, 28, 28), **{**SIMCLR, "hue": 0.0})(pictures(3, (1, 28, 28)), draw(0, 0, 1, 3))
    assert ours.shape == (3, 1, 28, 28)


def test_four_channels_pass_through_what_needs_no_colour_model() -> None:
    images, u = pictures(8, (4, 16, 16)), numbers(8)
    (ours,) = views_of((4, 16, 16), jitter_p=1.0, brightness=0.5, blur_p=1.0, flip_p=1.0)(images, u)
    for image, row, view in zip(images, u[0], ours, strict=True):
        sigma = 0.1 + 1.9 * float(row[COLUMN["sigma"]])
        bright = (TF.hflip(image.double() / 255) * factor(row, "brightness", 0.5)).clamp(0, 1)
        torch.testing.assert_close(view, TF.gaussian_blur(bright, [3, 3], [sigma, sigma]), rtol=0, atol=1e-4)


# --- distributions --------------------------------------------------------------------------------------------------


def test_parameters_differ_for_each_image_of_a_batch() -> None:
    image = pictures(1, (3, 16, 16)).expand(64, -1, -1, -1)
    (ours,) = views_of((3, 16, 16), **{**SIMCLR, "jitter_p": 1.0})(image, draw(0, 0, 1, 64))
    assert len({tuple(view.flatten().tolist()) for view in ours}) == 64


@pytest.mark.parametrize("name", ["crop", "brightness", "contrast", "saturation", "hue", "blur"])
def test_each_parameter_by_itself_differs_within_a_batch(name: str) -> None:
    changes = {"crop": {"crop_scale": (0.2, 1.0), "crop_ratio": (0.5, 2.0)}, "blur": {"blur_p": 1.0}}.get(
        name, {"jitter_p": 1.0, name: 0.4}
    )
    image = pictures(1, (3, 16, 16)).expand(16, -1, -1, -1)
    (ours,) = views_of((3, 16, 16), **changes)(image, numbers(16))
    apart = torch.cdist(ours.flatten(1), ours.flatten(1)) + torch.eye(16)
    assert apart.min() > 1e-6


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_crop_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    n, scale, ratio = 4000, (0.08, 1.0), (3 / 4, 4 / 3)
    views = views_of((3, height, width), 32, crop_scale=scale, crop_ratio=ratio)
    ours = np.array(boxes(views, draw(0, 0, 1, n)[0]))
    torch.manual_seed(0)
    canvas = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(canvas, list(scale), list(ratio)) for _ in range(n)])
    for column in range(4):
        counts = np.stack([np.bincount(rows[:, column], minlength=64) for rows in (ours, theirs)])
        counts = counts[:, counts.sum(0) >= 20]
        assert stats.chi2_contingency(counts).pvalue > P_VALUE, ("top", "left", "height", "width")[column]
    for share in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: (b[:, 0] + 0.5) / (height - b[:, 2] + 1)):
        assert stats.ks_2samp(share(ours), share(theirs)).pvalue > P_VALUE
    assert (ours[:, 0] + ours[:, 2]).max() == height, "the last row of the image is never reached"
    assert (ours[:, 1] + ours[:, 3]).max() == width
    assert ours[:, :2].min() == 0


@pytest.mark.parametrize("shape", [(3, 8, 64), (3, 64, 8)])
def test_where_no_box_fits_the_crop_is_torchvisions_centre(shape: tuple[int, int, int]) -> None:
    views = views_of(shape, 8, crop_scale=(1.0, 1.0), crop_ratio=(3 / 4, 4 / 3))
    expected = list(RandomResizedCrop.get_params(torch.empty(shape), [1.0, 1.0], [3 / 4, 4 / 3]))
    assert boxes(views, draw(0, 0, 1, 5)[0]) == [expected] * 5


def test_a_later_try_is_taken_where_the_first_does_not_fit() -> None:
    views, u = views_of((3, 32, 32), crop_scale=(0.5, 1.0), crop_ratio=(0.5, 2.0)), numbers(1)
    u[0, :, :TRIES] = 0.999  # almost the whole area at twice the width: does not fit
    u[0, :, TRIES : 2 * TRIES] = 0.999
    u[0, :, 3], u[0, :, TRIES + 3] = 0.0, 0.5  # the fourth: half of the area, square
    side = round((32 * 32 / 2) ** 0.5)
    assert boxes(views, u[0])[0][2:] == [side, side]


def test_the_orders_of_jitter_are_uniform() -> None:
    strengths = {"jitter_p": 1.0, "brightness": 0.9, "contrast": 0.9, "saturation": 0.9, "hue": 0.3}
    image, fixed = pictures(1, (3, 8, 8)), {"brightness": 0.95, "contrast": 0.9, "saturation": 0.95, "hue": 0.9}
    views = views_of((3, 8, 8), **strengths)
    row = numbers(1, **fixed)[0, 0]
    each = []
    for order in range(24):  # what the 24 orders make of this image, by torchvision
        row[COLUMN["order"]] = (order + 0.5) / 24
        each.append(torchvision_jitter(image[0].double() / 255, row, views).flatten())
    assert torch.pdist(torch.stack(each)).min() > 1e-3, "the picture must tell the orders apart"
    n = 24 * 100
    (ours,) = views(image.expand(n, -1, -1, -1), numbers(n, **fixed))
    distance, order = torch.cdist(ours.flatten(1), torch.stack(each)).min(1)
    assert distance.max() < 1e-4
    assert stats.chisquare(torch.bincount(order, minlength=24).numpy()).pvalue > P_VALUE


@pytest.mark.parametrize(("name", "strength"), [("brightness", 0.8), ("contrast", 0.8), ("saturation", 0.8), ("brightness", 1.5)])
def test_factors_are_uniform_as_torchvisions(name: str, strength: float) -> None:
    n = 3000
    image = torch.tensor([60, 90, 70], dtype=torch.uint8).view(1, 3, 1, 1).repeat(1, 1, 4, 4)  # no blend by up to 2.5 leaves [0, 1]
    image[:, :, 0] += 10
    (ours,) = views_of((3, 4, 4), jitter_p=1.0, **{name: strength})(image.expand(n, -1, -1, -1), numbers(n))
    x = image.double() / 255
    other = {"brightness": torch.zeros_like(x), "contrast": TF.rgb_to_grayscale(x).mean(), "saturation": TF.rgb_to_grayscale(x)}[name]
    found = ((ours - other) / (x - other))[:, 1, 0, 0]
    low = max(0.0, 1 - strength)
    assert stats.kstest(found, stats.uniform(low, 1 + strength - low).cdf).pvalue > P_VALUE


def test_hue_shifts_are_uniform_in_turns() -> None:
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(3000, -1, -1, -1)
    views = views_of((3, 1, 1), jitter_p=1.0, hue=0.2)
    (ours,) = views(red, numbers(3000))
    hues = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in ours[:, :, 0, 0].tolist()])
    assert stats.kstest((hues + 0.5) % 1 - 0.5, stats.uniform(-0.2, 0.4).cdf).pvalue > P_VALUE


def test_blur_widths_are_uniform_in_pixels() -> None:
    point = torch.zeros(3000, 1, 5, 5, dtype=torch.uint8)
    point[:, :, 2, 2] = 255
    (ours,) = views_of((1, 5, 5), blur_p=1.0, blur_sigma=(0.3, 2.0))(point, numbers(3000))
    sigma = (-0.5 / (ours[:, 0, 2, 3] / ours[:, 0, 2, 2]).log()).sqrt()
    assert stats.kstest(sigma, stats.uniform(0.3, 1.7).cdf).pvalue > P_VALUE


@pytest.mark.parametrize("name", ["flip", "jitter", "grayscale", "blur", "solarize"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_operations_happen_as_often_as_they_should(name: str, p: float) -> None:
    image = pictures(1, (3, 4, 4)).expand(3000, -1, -1, -1)
    (ours,) = views_of((3, 4, 4), brightness=0.5, blur_sigma=(1.0, 2.0), **{f"{name}_p": p})(image, numbers(3000))
    changed = int(((ours - image.double() / 255).flatten(1).abs().amax(1) > 1e-9).sum())
    assert stats.binomtest(changed, 3000, p).pvalue > P_VALUE


def test_all_numbers_are_uniform_and_independent_of_each_other() -> None:
    u = draw(0, 7, 2, 4096)
    assert u.min() >= 0
    assert u.max() < 1
    flat = u.permute(1, 0, 2).reshape(4096, -1).numpy()  # both views of an image in one row
    assert min(stats.kstest(column, "uniform").pvalue for column in flat.T) > P_VALUE / flat.shape[1]
    correlation = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlation).max() < 5 / 4096**0.5


def test_neighbouring_images_seeds_and_steps_are_uncorrelated() -> None:
    u = draw(0, 0, 1, 4096).flatten()
    for other in (u.roll(P), draw(1, 0, 1, 4096).flatten(), draw(0, 1, 1, 4096).flatten()):
        assert abs(np.corrcoef(u, other)[0, 1]) < 5 / len(u) ** 0.5


# --- randomness is a function ---------------------------------------------------------------------------------------


def test_draw_is_a_pure_function_of_its_arguments_and_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw(3, 5, 2, 16)
    draw(4, 6, 2, 16)
    assert torch.equal(draw(3, 5, 2, 16), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (2**32, 0), (2**40 + 1, 0), (0, 2**33)])
def test_every_bit_of_seed_and_step_counts(other: tuple[int, int]) -> None:
    assert (draw(*other, 2, 8) == draw(0, 0, 2, 8)).float().mean() < 0.01


def test_seed_and_step_are_not_interchangeable() -> None:
    assert (draw(1, 2, 1, 8) == draw(2, 1, 1, 8)).float().mean() < 0.01


def test_the_views_of_one_image_have_streams_of_their_own() -> None:
    u = draw(0, 0, 4, 64)
    for a, b in itertools.combinations(u, 2):
        assert (a == b).float().mean() < 0.01
    assert torch.equal(draw(0, 0, 2, 64), u[:2]), "more views must not change the first ones"


def test_the_numbers_are_these_in_every_version_and_on_every_machine() -> None:
    assert philox(0, 0, 1, 4).tolist() == [3103266502, 1469663869, 579547176, 2476110724]
    assert draw(3, 5, 2, 2)[1, 1, -2:].tolist() == [0.017929553985595703, 0.7573493719100952]


def test_philox_gives_as_many_words_as_asked() -> None:
    assert philox(1, 2, 3, 7).tolist() == philox(1, 2, 3, 10).tolist()[:7]


def test_draw_of_views_is_draw_for_its_number_of_views() -> None:
    views = views_of((3, 16, 16), 16, 16, 8)
    assert torch.equal(views.draw(2, 9, 5), draw(2, 9, 3, 5))
    assert views.draw(2, 9, 5).dtype == torch.float32


def test_a_ranks_rows_of_the_numbers_give_its_rows_of_the_views() -> None:
    views, images, u = views_of((3, 16, 16), 16, 12, **SIMCLR), pictures(12, (3, 16, 16)), draw(0, 3, 2, 12)
    whole = views(images, u)
    for rows in (slice(0, 6), slice(6, 12), slice(1, 12, 2)):
        for part, full in zip(views(images[rows], u[:, rows]), whole, strict=True):
            torch.testing.assert_close(part, full[rows], rtol=0, atol=1e-6)


def test_applying_is_pure() -> None:
    views, images, u = views_of((3, 16, 16), **SIMCLR), pictures(6, (3, 16, 16)), draw(0, 0, 1, 6)
    images_before, u_before = images.clone(), u.clone()
    first, second = views(images, u)[0], views(images, u)[0]
    assert torch.equal(first, second)
    assert torch.equal(images, images_before)
    assert torch.equal(u, u_before)


# --- shapes, types, compilation, refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(16,), (16, 16), (24, 16, 8), (16, 16, 8, 8, 8, 8)])
def test_any_number_of_views_of_any_size(sizes: tuple[int, ...]) -> None:
    views = views_of((3, 16, 16), *sizes, **SIMCLR)
    ours = views(pictures(5, (3, 16, 16)), views.draw(0, 0, 5))
    assert [tuple(view.shape) for view in ours] == [(5, 3, size, size) for size in sizes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numbers_type_is_the_views_type(dtype: torch.dtype) -> None:
    views = views_of((3, 16, 16), **SIMCLR, mean=(0.5,) * 3, std=(0.2,) * 3)
    images, u = pictures(8, (3, 16, 16)), draw(0, 0, 1, 8)
    (ours,) = views(images, u.to(dtype))
    assert ours.dtype == dtype
    away = (views(images, u.double())[0] * 0.2 + 0.5 - 128 / 255).abs() > 1e-3
    torch.testing.assert_close(ours[away].double(), views(images, u.double())[0][away], rtol=0, atol=1e-3)


def test_numbers_for_another_number_of_views_are_refused() -> None:
    with pytest.raises(ValueError):
        views_of((3, 16, 16), 16, 16)(pictures(2, (3, 16, 16)), draw(0, 0, 3, 2))


def test_compiled_views_equal_eager_ones() -> None:
    views, images = views_of((3, 16, 16), 16, **{**SIMCLR, "solarize_p": 0.0}), pictures(4, (3, 16, 16))
    compiled = torch.compile(views.__call__, dynamic=False, fullgraph=True)
    for step in range(2):
        u = views.draw(0, step, 4)
        torch.testing.assert_close(compiled(images, u)[0], views(images, u)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"view_sizes": ()},
        {"view_sizes": (16, 0)},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.1)},
        {"crop_scale": (0.9, 0.5)},
        {"crop_ratio": (0.0, 1.0)},
        {"crop_ratio": (2.0, 1.0)},
        {"blur_sigma": (0.0, 2.0)},
        {"blur_sigma": (2.0, 0.1)},
        *({f"{name}_p": p} for name in ("flip", "jitter", "grayscale", "blur", "solarize") for p in (-0.1, 1.1, float("nan"))),
        *({name: -0.1} for name in ("brightness", "contrast", "saturation", "hue")),
        {"hue": 0.6},
        {"blur_kernel": 4},
        {"blur_kernel": -1},
        {"blur_kernel": 33, "blur_p": 0.5},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5)},
        {"std": (0.5, 0.0, 0.5)},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_name(changes: dict[str, Any]) -> None:
    whole = {"image_shape": (3, 16, 16), "view_sizes": (16,), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    Views(**{**OFF, **whole})
    key = next(iter(changes))
    name = "jitter" if key in ("brightness", "contrast", "saturation", "hue") else key
    with pytest.raises(ValueError, match=name):
        Views(**{**OFF, **whole, **changes})


@pytest.mark.parametrize("changes", [{"saturation": 0.1}, {"hue": 0.1}, {"grayscale_p": 0.1}], ids=str)
def test_colour_operations_on_images_without_colours_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="channels"):
        views_of((4, 16, 16), **changes)
