"""ONNX: one file with weights and normalisation, checked in onnxruntime."""

import contextlib
import io
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from twoviews.export.trained import Trained

TOLERANCE = 1e-4  # largest difference of a feature in onnxruntime, relative to the largest feature


class Normalised(nn.Module):
    """A backbone that takes images (N, C, H, W) in [0, 1].

    Args:
        backbone: takes normalised images.
        mean, std: of each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return h (N, embed_dim)."""
        h: Tensor = self.backbone((images - self.mean) / self.std)
        return h


def check_packages() -> None:
    """Refuse an export for which a package is missing.

    Raises:
        ValueError: with what to install.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ValueError(f"to=onnx: needs {', '.join(missing)}: pip install 'twoviews[onnx]'")


def to_onnx(trained: Trained) -> bytes:
    """Return a backbone as an ONNX file: input `images` (N, C, H, W) float32 in [0, 1] for any N, output `h` (N, embed_dim).

    Raises:
        ValueError: if packages are missing.
        RuntimeError: if onnxruntime computes other features than torch.
    """
    check_packages()
    module = Normalised(trained.module, trained.numbers("mean"), trained.numbers("std")).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, trained.channels, trained.size, trained.size, generator=generator)
    batch = torch.export.Dim("batch", min=1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of torch about itself
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            module,
            (images,),
            file,
            dynamo=True,
            input_names=["images"],
            output_names=["h"],
            dynamic_shapes={"images": {0: batch}},
            external_data=False,
            verbose=False,
        )
        content = file.read_bytes()
    _check(content, module, images)
    return content


@torch.no_grad()
def _check(content: bytes, module: nn.Module, images: Tensor) -> None:
    """Compare features in onnxruntime and torch, for one image and for several."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for some in (images[:1], images):
        (found,), wanted = session.run(None, {"images": some.numpy()}), module(some)
        difference = float((torch.from_numpy(found) - wanted).abs().max() / wanted.abs().max())
        if not difference <= TOLERANCE:
            allowed = f"at most {TOLERANCE:g} is allowed"
            raise RuntimeError(f"to=onnx: features in onnxruntime differ by {difference:.1e} of the largest one: {allowed}")
