"""SimCLR: NT-Xent of the projections of its views."""

from __future__ import annotations

import contract
import pytest
import torch

from twoviews.losses import nt_xent


@pytest.mark.parametrize("one_forward", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_simclr_is_nt_xent_of_its_projections(count: int, one_forward: bool) -> None:
    method = contract.tiny("simclr", one_forward=one_forward, temperature=0.3)
    (first, second), _, progress = contract.batch("simclr")
    views = [first, second, first.flip(3)][:count]
    project = method.modules_to_probe()["z"]
    z = project(torch.cat(views)) if one_forward else torch.cat([project(view) for view in views])
    torch.testing.assert_close(method(views, None, progress)[0], nt_xent(z, 0.3, count))
    shuffled = z.view(count, contract.IMAGES, -1).transpose(0, 1).flatten(0, 1)
    assert abs(nt_xent(shuffled, 0.3, count) - nt_xent(z, 0.3, count)) > 1e-3, "a wrong pairing must change the loss"
