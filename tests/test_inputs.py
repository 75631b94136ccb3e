"""Views that differ from each other, and combinations of keys that are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from twoviews import build, config
from twoviews.cli import main
from twoviews.config import Config
from twoviews.cpu import views as cpp

WORDS = ["recipe=simclr", "dataset=fashion_mini", "backbone=thin16", "batch_size=16", "device=cpu"]


def loaded(*words: str) -> Config:
    return config.load("pretrain", [*WORDS, *words])


def test_without_the_key_views_there_are_two_equal_views() -> None:
    parts = build.build(loaded())
    assert parts.views.specs[0] == parts.views.specs[1]
    assert parts.views.sizes == (28, 28)


def test_each_entry_of_views_changes_some_keys_of_as_many_views_as_it_counts() -> None:
    words = ("views=[{},{solarize_p:0.2,blur_p:1.0},{count:3,crop_scale:[0.05,0.3]}]", "view_sizes=[28,28,12,12,12]", "blur_p=0.5")
    specs = build.build(loaded(*words)).views.specs
    assert [spec.size for spec in specs] == [28, 28, 12, 12, 12]
    assert [spec.solarize_p for spec in specs] == [0, 0.2, 0, 0, 0]
    assert [spec.blur_p for spec in specs] == [0.5, 1.0, 0.5, 0.5, 0.5]
    assert [list(spec.crop_scale) for spec in specs] == [[0.08, 1.0]] * 2 + [[0.05, 0.3]] * 3


def test_views_that_differ_are_the_same_in_cpp_and_in_pytorch() -> None:
    views = build.build(loaded("views=[{blur_p:1.0},{flip_p:1.0},{crop_scale:[0.05,0.3]}]", "view_sizes=[28,28,12]")).views
    if cpp.library() is None:
        pytest.skip("needs a C++ compiler")
    images = torch.randint(256, (6, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    u = views.draw(0, 0, 6).double()
    for ours, fast in zip(views(images, u), cpp.maker(views)(images, u), strict=True):
        torch.testing.assert_close(ours, fast, rtol=0, atol=1e-9)


def test_a_view_has_the_same_pixels_whatever_the_others_are() -> None:
    images = torch.randint(256, (6, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    alike, different = (build.build(loaded(*words)).views for words in ((), ("views=[{},{count:4,solarize_p:1.0}]",)))
    first = [views(images, views.draw(0, 0, 6))[0] for views in (alike, different)]
    assert torch.equal(*first)


def test_views_stay_as_they_were_typed_in_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "recipe=byol_thin", "views=[{count: 2},{solarize_p: 0.2}]", "view_sizes=null", "--cfg", "job"]) == 0
    assert "views:\n- count: 2\n- solarize_p: 0.2\n" in capsys.readouterr().out
    assert config.word("views", [{"count": 2}, {"crop_scale": (0.1, 0.5)}]) == "views=[{count:2},{crop_scale:[0.1,0.5]}]"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("views=[{size:12}]", "views expects a list in brackets, not empty, each item {key:value} of count, crop_scale"),
        ("views=[{blur_p:2}]", "views expects"),
        ("views=[{blur_p:true}]", "views expects"),
        ("views=[{count:0}]", "views expects"),
        ("views=[]", "views expects"),
        ("views=3", "views expects"),
        ("views={blur_p:1.0}", "views expects"),
        ("views=[[blur_p,1]]", "views expects"),
    ],
)
def test_views_that_cannot_be_made_are_refused(word: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        loaded(word)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("views=[{},{},{}]", "view_sizes=[12,12]"),
            "views describes 3 views, view_sizes 2: give both the same number, or view_sizes=null",
        ),
        (("view_sizes=[12]",), "simclr: needs 2 views, got 1: describe as many in view_sizes and in views, or leave both out"),
        (("views=[{blur_p:1.0}]",), "simclr: needs 2 views, got 1"),
    ],
)
def test_a_number_of_views_that_does_not_fit_is_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        build.build(loaded(*words))


def test_lists_of_different_lengths_are_refused_before_the_data_are_read() -> None:
    with pytest.raises(ValueError, match="views describes 3 views, view_sizes 2"):
        loaded("views=[{},{},{}]", "view_sizes=[12,12]")


def test_supervised_training_accepts_a_single_view() -> None:
    cfg = config.load("pretrain", ["recipe=supervised", "dataset=fashion_mini", "backbone=thin16", "view_sizes=[12]", "whiten_stem=false"])
    assert build.build(cfg).views.sizes == (12,)
    assert config.view_differences(cfg) == [{}]
