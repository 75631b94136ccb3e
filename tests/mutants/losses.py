"""Faults in the losses."""

from mutants.mutant import Mutant

FILE, TESTS = "losses/contrastive.py", "losses/test_contrastive.py"
MUTANTS = [
    Mutant(
        "own row is a negative",
        FILE,
        'torch.arange(len(keys), device=z.device), float("-inf"))',
        "torch.arange(len(keys), device=z.device), 0.0)",
        TESTS,
    ),
    Mutant("a tile masks the first rows, not its own", FILE, "own[rows]] = float", "own[: len(logits)]] = float", TESTS),
    Mutant(
        "the gradient of a pair from one end only", FILE, "            grad_keys.index_add_(0, positives, z, alpha=-share)\n", "", TESTS
    ),
    Mutant("cosine clamped at zero", FILE, "return z @ keys.T / temperature", "return (z @ keys.T).clamp(min=1e-7) / temperature", TESTS),
    Mutant("pairs interleaved, rows stacked", FILE, "own + shift * (keys // views)) % keys", "own ^ shift) % keys", TESTS),
    Mutant("temperature multiplied", FILE, "z @ keys.T / temperature", "z @ keys.T * temperature", TESTS),
    Mutant("loss summed over both directions", FILE, "return -log_p.gather(1,", "return -2 * log_p.gather(1,", TESTS),
    Mutant("projections not normalised", FILE, "z = F.normalize(exact(z), dim=1)\n    keys", "z = exact(z)\n    keys", TESTS),
    Mutant(
        "normalised over the batch", FILE, "z = F.normalize(exact(z), dim=1)\n    keys", "z = F.normalize(exact(z), dim=0)\n    keys", TESTS
    ),
    Mutant(
        "logits in bfloat16",
        "losses/precision.py",
        "torch.autocast(device.type, enabled=False)",
        "torch.autocast(device.type, torch.bfloat16)",
        TESTS,
    ),
    Mutant(
        "the key is not among the candidates",
        FILE,
        "torch.cat([own, others], 1) / temperature",
        "torch.cat([own - own.detach(), others], 1) / temperature",
        TESTS,
    ),
]
