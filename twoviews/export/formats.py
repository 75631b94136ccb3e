"""The formats: which files each has, and the lines that load them in a program that does not know TwoViews."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twoviews.export.onnx import to_onnx
from twoviews.export.trained import Trained
from twoviews.models.resnet import ThinResNet

WEIGHTS, ONNX = "model.safetensors", "model.onnx"


@dataclass(frozen=True)
class Format:
    """How a backbone is written for one library.

    Args:
        file: that holds the weights.
        content: its bytes.
        lines: Python code that loads a file of that name and computes features.
        needs: packages of that code.
    """

    file: str
    content: Callable[[Trained], bytes]
    lines: Callable[[Trained, str], str]
    needs: str


def _safetensors(trained: Trained) -> bytes:
    """Return the weights file of the run as it is: its key names are torchvision's and timm's."""
    return trained.file.read_bytes()


def _torchvision(trained: Trained, file: str) -> str:
    if isinstance(trained.module, ThinResNet):
        return _thin(trained, trained.module, file)
    stem = "" if trained.imagenet_stem else _small_stem(trained)
    return (
        "import torch\nimport torchvision\nfrom safetensors.torch import load_file\n\n"
        f"net = torchvision.models.{trained.backbone}()\n{stem or _gray_stem(trained)}"
        f"net.fc = torch.nn.Identity()  # h in place of ImageNet's classes\n{_load(file)}\n{_features(trained)}"
    )


def _timm(trained: Trained, file: str) -> str:
    if isinstance(trained.module, ThinResNet):
        raise ValueError(f"to=timm: timm has no {trained.backbone}: choose to=torchvision or to=onnx")
    channels = f", in_chans={trained.channels}" if trained.channels != 3 else ""
    stem = "" if trained.imagenet_stem else _small_stem(trained)
    return (
        "import timm\nimport torch\nfrom safetensors.torch import load_file\n\n"
        f'net = timm.create_model("{trained.backbone}", num_classes=0{channels})\n{stem}{_load(file)}\n{_features(trained)}'
    )


def _small_stem(trained: Trained) -> str:
    return (
        f"net.conv1 = torch.nn.Conv2d({trained.channels}, 64, 3, padding=1, bias=False)  # stem for small images\n"
        "net.maxpool = torch.nn.Identity()\n"
    )


def _gray_stem(trained: Trained) -> str:
    gray = f"net.conv1 = torch.nn.Conv2d({trained.channels}, 64, 7, stride=2, padding=3, bias=False)\n"
    return gray if trained.channels != 3 else ""


def _thin(trained: Trained, net: ThinResNet, file: str) -> str:
    """Return the lines for a thin net, which torchvision lacks, but whose blocks are torchvision's."""
    stages = [net.get_submodule(f"layer{i}") for i in range(1, net.stages + 1)]
    widths = [stage[-1].conv2.out_channels for stage in stages]  # type: ignore[index]
    depths = [len(stage) for stage in stages]  # type: ignore[arg-type]
    first, stride = widths[0], net.conv1.stride[0]
    made = "".join(
        f"    layer{i}=stage({before}, {width}, {depth}),\n"
        for i, (before, width, depth) in enumerate(zip([first, *widths], widths, depths, strict=False), start=1)
    )
    return (
        "from collections import OrderedDict\n\nimport torch\nfrom safetensors.torch import load_file\nfrom torch import nn\n"
        "from torchvision.models.resnet import BasicBlock\n\n\n"
        "def stage(before, width, blocks):\n"
        "    shortcut = None\n"
        "    if before != width:\n"
        "        shortcut = nn.Sequential(\n"
        "            nn.Conv2d(before, width, 1, stride=2, bias=False), nn.BatchNorm2d(width)\n"
        "        )\n"
        "    first = BasicBlock(before, width, 2 if shortcut else 1, shortcut)\n"
        "    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))\n\n\n"
        "net = nn.Sequential(OrderedDict(\n"
        f"    conv1=nn.Conv2d({trained.channels}, {first}, 3, stride={stride}, padding=1, bias=False),\n"
        f"    bn1=nn.BatchNorm2d({first}),\n    relu=nn.ReLU(),\n{made}"
        "    avgpool=nn.AdaptiveAvgPool2d(1),\n    flatten=nn.Flatten(),\n))\n"
        f"{_load(file)}\n{_features(trained)}"
    )


def _load(file: str) -> str:
    return f'net.load_state_dict(load_file("{file}"))\nnet.eval()\n'


def _features(trained: Trained) -> str:
    mean, std = (", ".join(f"{value:g}" for value in trained.numbers(name)) for name in ("mean", "std"))
    return (
        f"mean = torch.tensor([{mean}]).view(-1, 1, 1)\nstd = torch.tensor([{std}]).view(-1, 1, 1)\n"
        f"images = torch.rand(4, {trained.channels}, {trained.size}, {trained.size})  # yours, from 0 to 1\n"
        f"with torch.no_grad():\n    h = net((images - mean) / std)  # 4 x {trained.embed_dim}\n"
    )


def _onnx(trained: Trained, file: str) -> str:
    return (
        "import numpy as np\nimport onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{file}")\n'
        f"images = np.random.rand(4, {trained.channels}, {trained.size}, {trained.size})  # yours, from 0 to 1\n"
        f'(h,) = session.run(None, {{"images": images.astype(np.float32)}})  # 4 x {trained.embed_dim}\n'
    )


def hub_lines(trained: Trained, to: str, repository: str) -> tuple[str, str]:
    """Return the lines that load an export from the Hugging Face Hub, and the packages that they need.

    Args:
        trained: that was pushed.
        to: a key of `FORMATS`.
        repository: `user/name`.
    """
    form = FORMATS["torchvision" if to == "hub" else to]
    lines = form.lines(trained, "@").replace('"@"', "file")
    first = "session = " if form.file == ONNX else "net = "
    fetch = f'file = hf_hub_download("{repository}", "{form.file}")\n'
    return "from huggingface_hub import hf_hub_download\n" + lines.replace(
        f"\n{first}", f"\n{fetch}{first}", 1
    ), f"{form.needs} huggingface_hub"


def _hub(trained: Trained, file: str) -> str:
    return hub_lines(trained, "hub", "<user>/<name>")[0]


FORMATS = {
    "torchvision": Format(WEIGHTS, _safetensors, _torchvision, "torch torchvision safetensors"),
    "timm": Format(WEIGHTS, _safetensors, _timm, "timm safetensors"),
    "onnx": Format(ONNX, to_onnx, _onnx, "onnxruntime"),
    "hub": Format(WEIGHTS, _safetensors, _hub, "torch torchvision safetensors huggingface_hub"),
}


def path_in_code(path: Path) -> str:
    """Return a path as it stands between the quotes of a line of code."""
    return path.as_posix().replace("\\", "\\\\").replace('"', '\\"')
