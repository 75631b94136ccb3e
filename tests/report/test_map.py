"""The map of images: groups of features stay groups in the plane."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from twoviews import inspection


def examined(h: torch.Tensor) -> inspection.Examined:
    """Return what was computed of some test images with these features; there are no training images."""
    rows = torch.arange(len(h))
    return inspection.Examined("test", rows, torch.zeros(len(h), dtype=torch.int64), h, rows[:0], rows[:0], h[:0])


def three_groups(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    groups = torch.arange(count) % 3
    return 4 * torch.eye(3, 16)[groups] + torch.randn(count, 16, generator=torch.Generator().manual_seed(0)), groups


def check(h: torch.Tensor, groups: torch.Tensor, by: str) -> dict[str, Any]:
    found = inspection.embedding_map(examined(h))
    assert (found["by"], found["split"], found["rows"]) == (by, "test", list(range(len(h))))
    xy = torch.tensor(found["xy"])
    assert xy.min() == 0
    assert xy.max() == 1
    nearest = (torch.cdist(xy, xy) + 9 * torch.eye(len(xy))).argmin(1)
    assert (groups[nearest] == groups).float().mean() > 0.95
    return found


def test_groups_stay_groups_and_the_map_is_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "find_spec", lambda name: None)
    h, groups = three_groups(600)
    assert check(h, groups, "t-SNE") == check(h, groups, "t-SNE")


@pytest.mark.long
def test_umap_is_taken_for_many_images() -> None:
    h, groups = three_groups(inspection.LEAST_UMAP)
    assert check(h, groups, "UMAP") == check(h, groups, "UMAP")
    h, groups = three_groups(inspection.LEAST_UMAP - 1)
    check(h, groups, "t-SNE")


@pytest.mark.long
def test_what_umap_compiles_is_stored_and_without_a_place_for_it_there_is_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    h, groups = three_groups(inspection.LEAST_UMAP)
    xy = check(h, groups, "UMAP")
    umap_ = sys.modules["umap.umap_"]  # its import warns
    assert umap_.smooth_knn_dist.stats.cache_path

    def nowhere(self: Any) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(type(umap_.smooth_knn_dist), "enable_caching", nowhere)
    assert check(h, groups, "UMAP") == xy


def test_features_that_are_all_equal_have_no_map() -> None:
    assert inspection.embedding_map(examined(torch.ones(600, 8))) == {}
