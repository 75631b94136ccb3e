"""Random numbers are pure functions of seed, step and stream, by the definition of Philox4x64-10."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twoviews import rng

MASK = 2**64 - 1


def philox_block(counter: list[int], key: list[int]) -> list[int]:
    """Return four 64-bit words by the definition of Philox4x64-10 (Salmon et al. 2011, section 3.3)."""
    (x0, x1, x2, x3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * x0, 0xCA5A826395121157 * x2
        x0, x1, x2, x3 = (b >> 64) ^ x1 ^ k0, b & MASK, (a >> 64) ^ x3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [x0, x1, x2, x3]


def reference(seed: int, step: int, stream: int, count: int) -> list[int]:
    """Return `count` 32-bit words; the first block has counter 1, and a 64-bit word gives its low half first."""
    words = [word for i in range(1, count // 8 + 2) for word in philox_block([i, 0, 0, stream], [seed, step])]
    return [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)][:count]


def test_the_reference_gives_the_published_words() -> None:
    """Random123's known answers, `kat_vectors`, philox4x64 with 10 rounds."""
    assert philox_block([0] * 4, [0] * 2) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox_block([MASK] * 4, [MASK] * 2) == [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]


@pytest.mark.parametrize(("seed", "step", "stream"), [(0, 0, 0), (3, 1, 0), (0, 7, 2), (2**63, 2**40, rng.PROBE_ORDER)])
@pytest.mark.parametrize("count", [1, 8, 27])
def test_words_are_those_of_philox(seed: int, step: int, stream: int, count: int) -> None:
    words = rng.philox(seed, step, stream, count)
    assert words.dtype == np.uint32
    assert words.tolist() == reference(seed, step, stream, count)


def test_the_words_never_change_and_more_words_keep_the_first_ones() -> None:
    assert rng.philox(0, 0, 1, 4).tolist() == [3103266502, 1469663869, 579547176, 2476110724]
    assert rng.philox(1, 2, 3, 7).tolist() == rng.philox(1, 2, 3, 10).tolist()[:7]


def test_uniform_numbers_are_the_upper_24_bits_of_the_words() -> None:
    numbers = rng.uniform(5, 9, 1, 1000)
    assert numbers.dtype == np.float32
    assert numbers.tolist() == [(word >> 8) / 2**24 for word in reference(5, 9, 1, 1000)]
    assert numbers.min() >= 0
    assert numbers.max() < 1


def test_streams_steps_and_seeds_are_independent() -> None:
    settings = [(seed, step, stream) for seed in (0, 1) for step in (0, 1) for stream in (0, 1, rng.PROBE_ORDER)]
    assert len({tuple(rng.philox(*setting, 8).tolist()) for setting in settings}) == len(settings)


# ---- the order of the images ----


@pytest.mark.parametrize("n", [1, 2, 3, 320, 50_000])
def test_an_epoch_visits_every_image_once(n: int) -> None:
    assert torch.equal(rng.permutation(0, 0, n).sort().values, torch.arange(n))


def test_the_order_is_a_function_of_seed_and_epoch_only() -> None:
    first = rng.permutation(5, 2, 1000)
    np.random.seed(1)  # noqa: NPY002 - a state that must not matter
    torch.manual_seed(1)
    assert torch.equal(rng.permutation(5, 2, 1000), first)
    orders = {tuple(rng.permutation(seed, epoch, 1000).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_is_that_of_release_0_1() -> None:
    words = [word for i in (1, 2) for word in philox_block([i, 0, 0, 0], [0, 0])]
    assert rng.permutation(0, 0, 8).tolist() == np.argsort(np.array(words, np.uint64)).tolist()
    assert rng.permutation(3, 1, 10).tolist() == [9, 7, 8, 3, 5, 6, 4, 0, 2, 1]
