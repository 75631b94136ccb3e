"""Specifications of views: the distribution of every parameter, and random numbers as a function of seed and step."""

from __future__ import annotations

import colorsys
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF
from view_helpers import SIMCLR, boxes, numbers, pictures, spec_of, torchvision_jitter, views_of

from twoviews.views.spec import COLUMN, TRIES, P, Views, draw

P_VALUE = 1e-3  # threshold of every test of a distribution; seeds are fixed, so the result never changes


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
    assert (ours[:, 0] + ours[:, 2]).max() == height, "the last row of the image must be reached"
    assert (ours[:, 1] + ours[:, 3]).max() == width
    assert ours[:, :2].min() == 0


@pytest.mark.parametrize("shape", [(3, 8, 64), (3, 64, 8)])
def test_if_no_box_fits_the_crop_is_torchvisions_centre(shape: tuple[int, int, int]) -> None:
    views = views_of(shape, 8, crop_scale=(1.0, 1.0), crop_ratio=(3 / 4, 4 / 3))
    expected = list(RandomResizedCrop.get_params(torch.empty(shape), [1.0, 1.0], [3 / 4, 4 / 3]))
    assert boxes(views, draw(0, 0, 1, 5)[0]) == [expected] * 5


def test_a_later_box_is_used_if_the_first_does_not_fit() -> None:
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
    for order in range(24):  # this image in the 24 orders, by torchvision
        row[COLUMN["order"]] = (order + 0.5) / 24
        each.append(torchvision_jitter(image[0].double() / 255, row, views.specs[0]).flatten())
    assert torch.pdist(torch.stack(each)).min() > 1e-3, "each order must give another image"
    n = 24 * 100
    (ours,) = views(image.expand(n, -1, -1, -1), numbers(n, **fixed))
    distance, order = torch.cdist(ours.flatten(1), torch.stack(each)).min(1)
    assert distance.max() < 1e-4
    assert stats.chisquare(torch.bincount(order, minlength=24).numpy()).pvalue > P_VALUE


@pytest.mark.parametrize(("name", "strength"), [("brightness", 0.8), ("contrast", 0.8), ("saturation", 0.8), ("brightness", 1.5)])
def test_factors_are_uniform_as_torchvisions(name: str, strength: float) -> None:
    n = 3000
    image = torch.tensor([60, 90, 70], dtype=torch.uint8).view(1, 3, 1, 1).repeat(1, 1, 4, 4)  # blending by up to 2.5 stays in [0, 1]
    image[:, :, 0] += 10
    (ours,) = views_of((3, 4, 4), jitter_p=1.0, **{name: strength})(image.expand(n, -1, -1, -1), numbers(n))
    x = image.double() / 255
    other = {"brightness": torch.zeros_like(x), "contrast": TF.rgb_to_grayscale(x).mean(), "saturation": TF.rgb_to_grayscale(x)}[name]
    factors = ((ours - other) / (x - other))[:, 1, 0, 0]
    low = max(0.0, 1 - strength)
    assert stats.kstest(factors, stats.uniform(low, 1 + strength - low).cdf).pvalue > P_VALUE


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


def test_draw_is_a_pure_function_of_its_arguments_and_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw(3, 5, 2, 16)
    draw(4, 6, 2, 16)
    assert torch.equal(draw(3, 5, 2, 16), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (2**32, 0), (2**40 + 1, 0), (0, 2**33)])
def test_every_bit_of_seed_and_step_changes_the_numbers(other: tuple[int, int]) -> None:
    assert (draw(*other, 2, 8) == draw(0, 0, 2, 8)).float().mean() < 0.01


def test_seed_and_step_are_not_interchangeable() -> None:
    assert (draw(1, 2, 1, 8) == draw(2, 1, 1, 8)).float().mean() < 0.01


def test_each_view_of_an_image_has_its_own_stream() -> None:
    u = draw(0, 0, 4, 64)
    for a, b in itertools.combinations(u, 2):
        assert (a == b).float().mean() < 0.01
    assert torch.equal(draw(0, 0, 2, 64), u[:2]), "more views must not change the first ones"


def test_the_numbers_are_the_same_in_every_version_and_on_every_machine() -> None:
    assert draw(3, 5, 2, 2)[1, 1, -2:].tolist() == [0.017929553985595703, 0.7573493719100952]


def test_views_draw_numbers_for_each_of_their_views() -> None:
    views = views_of((3, 16, 16), 16, 16, 8)
    assert torch.equal(views.draw(2, 9, 5), draw(2, 9, 3, 5))
    assert views.draw(2, 9, 5).dtype == torch.float32


def test_a_rank_gets_its_views_from_its_rows_of_the_numbers() -> None:
    views, images, u = views_of((3, 16, 16), 16, 12, **SIMCLR), pictures(12, (3, 16, 16)), draw(0, 3, 2, 12)
    whole = views(images, u)
    for rows in (slice(0, 6), slice(6, 12), slice(1, 12, 2)):
        for part, full in zip(views(images[rows], u[:, rows]), whole, strict=True):
            torch.testing.assert_close(part, full[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", [(16,), (16, 16), (24, 16, 8), (16, 16, 8, 8, 8, 8)])
def test_any_number_of_views_of_any_size(sizes: tuple[int, ...]) -> None:
    views = views_of((3, 16, 16), *sizes, **SIMCLR)
    ours = views(pictures(5, (3, 16, 16)), views.draw(0, 0, 5))
    assert [tuple(view.shape) for view in ours] == [(5, 3, size, size) for size in sizes]


def test_each_view_has_its_own_specification() -> None:
    changes = ({"grayscale_p": 1.0}, {"crop_scale": (0.1, 0.5), "flip_p": 0.5})
    specs = [spec_of(size, **change) for size, change in zip((16, 8), changes, strict=True)]
    views, images = Views(image_shape=(3, 16, 16), specs=specs, mean=(0.0,) * 3, std=(1.0,) * 3), pictures(6, (3, 16, 16))
    u = views.draw(0, 0, 6)
    for i, (size, change) in enumerate(zip((16, 8), changes, strict=True)):
        assert torch.equal(views(images, u)[i], views_of((3, 16, 16), size, **change)(images, u[i : i + 1])[0])


def test_numbers_for_another_number_of_views_are_refused() -> None:
    for count in (1, 3):
        with pytest.raises(ValueError, match="zip"):
            views_of((3, 16, 16), 16, 16)(pictures(2, (3, 16, 16)), draw(0, 0, count, 2))


@pytest.mark.parametrize(
    "changes",
    [
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
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_with_their_name(changes: dict[str, Any]) -> None:
    key = next(iter(changes))
    name = "jitter" if key in ("brightness", "contrast", "saturation", "hue") else key
    with pytest.raises(ValueError, match=name):
        spec_of(16, **changes)


def test_a_view_needs_a_size_and_there_must_be_a_view() -> None:
    spec_of(1)
    with pytest.raises(ValueError, match="view size: expected at least 1 pixel, got 0"):
        spec_of(0)
    with pytest.raises(ValueError, match="specs"):
        Views(image_shape=(3, 16, 16), specs=[], mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.mark.parametrize("changes", [{"mean": (0.5,)}, {"std": (0.5, 0.5)}, {"std": (0.5, 0.0, 0.5)}], ids=str)
def test_mean_and_std_need_a_positive_value_for_each_channel(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        views_of((3, 16, 16), **changes)


@pytest.mark.parametrize("changes", [{"saturation": 0.1}, {"hue": 0.1}, {"grayscale_p": 0.1}], ids=str)
def test_colour_operations_on_images_without_colours_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="channels"):
        views_of((4, 16, 16), **changes)
