"""Faults in the losses."""

from mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "own row is a negative",
        "losses.py",
        'masked_fill(torch.eye(rows, dtype=torch.bool, device=z.device), float("-inf"))',
        "masked_fill(torch.eye(rows, dtype=torch.bool, device=z.device), 0.0)",
        "test_losses.py",
    ),
    Mutant("a tile masks the first rows, not its own", "losses.py", "logits[own, own + start]", "logits[own, own]", "test_losses.py"),
    Mutant("the gradient of a pair from one end only", "losses.py", ".mean(0).mul_(-2)", ".mean(0).mul_(-1)", "test_losses.py"),
    Mutant(
        "cosine clamped at zero",
        "losses.py",
        "logits = z @ z.T / temperature",
        "logits = (z @ z.T).clamp(min=1e-7) / temperature",
        "test_losses.py",
    ),
    Mutant("pairs interleaved, rows stacked", "losses.py", "(anchors + shift * n) % rows", "(anchors ^ shift) % rows", "test_losses.py"),
    Mutant("temperature multiplied", "losses.py", "z @ z.T / temperature", "z @ z.T * temperature", "test_losses.py"),
    Mutant(
        "loss summed over both directions",
        "losses.py",
        "-log_p.gather(1, positives).mean()",
        "-2 * log_p.gather(1, positives).mean()",
        "test_losses.py",
    ),
    Mutant(
        "projections not normalised",
        "losses.py",
        "F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)",
        "(z if z.dtype == torch.float64 else z.float())",
        "test_losses.py",
    ),
    Mutant("normalised over the batch", "losses.py", "z.float(), dim=1)", "z.float(), dim=0)", "test_losses.py"),
    Mutant(
        "logits in bfloat16",
        "losses.py",
        "torch.autocast(device.type, enabled=False)",
        "torch.autocast(device.type, torch.bfloat16)",
        "test_losses.py",
    ),
    Mutant(
        "the key is not among the candidates",
        "losses.py",
        "torch.cat([own, others], 1) / temperature",
        "torch.cat([own - own.detach(), others], 1) / temperature",
        "test_losses.py",
    ),
]
