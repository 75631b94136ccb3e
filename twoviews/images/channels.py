"""Gray images from colours, and the reverse."""

import torch
from torch import Tensor


def change_channels(images: Tensor, channels: int) -> Tensor:
    """Return images (N, C, H, W) uint8 with 1 or 3 channels: gray is repeated, colour becomes ITU-R 601 luma."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (images * luma).sum(1, keepdim=True).round().to(torch.uint8)
