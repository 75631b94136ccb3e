"""Faults in the losses."""

from mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "own row is a negative",
        "losses.py",
        'torch.arange(len(keys), device=z.device), float("-inf"))',
        "torch.arange(len(keys), device=z.device), 0.0)",
        "test_losses.py",
    ),
    Mutant("a tile masks the first rows, not its own", "losses.py", "own[rows]] = float", "own[: len(logits)]] = float", "test_losses.py"),
    Mutant(
        "the gradient of a pair from one end only",
        "losses.py",
        "            grad_keys.index_add_(0, positives, z, alpha=-share)\n",
        "",
        "test_losses.py",
    ),
    Mutant(
        "cosine clamped at zero",
        "losses.py",
        "logits = z @ keys.T / temperature",
        "logits = (z @ keys.T).clamp(min=1e-7) / temperature",
        "test_losses.py",
    ),
    Mutant(
        "pairs interleaved, rows stacked", "losses.py", "own + shift * (keys // views)) % keys", "own ^ shift) % keys", "test_losses.py"
    ),
    Mutant("temperature multiplied", "losses.py", "z @ keys.T / temperature", "z @ keys.T * temperature", "test_losses.py"),
    Mutant("loss summed over both directions", "losses.py", "return -log_p.gather(1,", "return -2 * log_p.gather(1,", "test_losses.py"),
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
