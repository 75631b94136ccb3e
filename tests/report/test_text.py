"""What the statistics of features mean, in words."""

from __future__ import annotations

import pytest

from twoviews.report.text import features_in_words


@pytest.mark.parametrize(
    ("spread", "rank", "says"),
    [
        (0.9, 40.0, "features h: not collapsed: images differ in about 40 independent ways (spread 0.90, where 1 is even"),
        (0.1, 40.0, "features h: images look much alike to the encoder: train longer"),
        (0.01, 40.0, "features h: collapsed: all images look alike to the encoder"),
        (0.9, 1.5, "features h: collapsed: all images look alike to the encoder"),
    ],
)
def test_a_collapse_is_named(spread: float, rank: float, says: str) -> None:
    words = features_in_words({"h": {"std": spread, "rankme": rank, "dims": 256.0, "uniformity": -2.0}})
    assert says in words
    assert words.endswith(f"RankMe {rank:.1f} of 256)")
