"""`twoviews export run=<run> to=torchvision|timm|onnx|hub`: a trained backbone for other programs."""

from pathlib import Path

from twoviews import export
from twoviews.config import Config


def run(cfg: Config) -> int:
    """Write the folder, and print the lines that load it."""
    trained = export.read(cfg.run, cfg.runs_dir)
    folder = Path(cfg.export_dir or f"{trained.name}-{cfg.to}")
    lines, needs = export.write(trained, cfg.to, folder, cfg.push)
    print(f"{trained.name}: {trained.backbone}, {trained.channels} x {trained.size} x {trained.size} pixels, {trained.embed_dim} features")
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if cfg.push:
        print(f"https://huggingface.co/{cfg.push} (private if it is new: its settings there make it public)")
    print(f"\nTo load it (pip install {needs}):\n\n{lines}", end="")
    return 0
