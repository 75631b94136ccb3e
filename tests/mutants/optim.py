"""Faults in the optimisers and the learning rate."""

from mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "rate applied twice",
        "optim/schedules.py",
        "return rate if rate is not None else base * batch_size / 256",
        "rate = rate if rate is not None else base * batch_size / 256; return rate * rate",
        "optim/test_schedules.py",
    ),
    Mutant("rate scaled by 128", "optim/schedules.py", "base * batch_size / 256", "base * batch_size / 128", "optim/test_schedules.py"),
    Mutant("warm-up starts at zero", "optim/schedules.py", "peak * (step + 1) / warmup", "peak * step / warmup", "optim/test_schedules.py"),
    Mutant(
        "the schedule ends after an epoch, not after the run",
        "optim/schedules.py",
        "max(1, steps - warmup)",
        "max(1, steps_per_epoch - warmup)",
        "optim/test_schedules.py",
    ),
    Mutant("floor ignored", "optim/schedules.py", "floor + (peak - floor)", "(peak - floor)", "optim/test_schedules.py"),
    Mutant(
        "the rate drops at the start",
        "optim/schedules.py",
        "step >= steps - share * steps",
        "step >= share * steps",
        "test_the_step_schedule_drops_to_a_fifth_for_the_last_50_and_25_of_1000_epochs",
    ),
    Mutant(
        "a rate per epoch changes at every step",
        "optim/schedules.py",
        '(step // steps_per_epoch + (unit == "next_epoch")) * steps_per_epoch',
        "step",
        "optim/test_schedules.py",
    ),
    Mutant(
        "epochs counted from 0 where the source counts from 1",
        "optim/schedules.py",
        ' + (unit == "next_epoch")',
        "",
        "test_with_unit_next_epoch_the_rate_is_that_of_epochs_counted_from_1",
    ),
    Mutant(
        "MoCo's CIFAR demo with epochs counted from 0",
        "config/recipes/moco_cifar_demo.yaml",
        "schedule_unit: next_epoch",
        "schedule_unit: epoch",
        "config/test_recipes.py",
    ),
    Mutant("norms never decayed", "optim/optimizers.py", "if decay_norms:", "if False:", "optim/test_optimizers.py"),
    Mutant("Muon's step is not orthogonal", "optim/optimizers.py", "for _ in range(5):", "for _ in range(0):", "optim/test_optimizers.py"),
    Mutant(
        "Muon's decay is not decoupled",
        "optim/optimizers.py",
        '1 - group["lr"] * group["weight_decay"]',
        '1 - group["weight_decay"]',
        "optim/test_optimizers.py",
    ),
    Mutant(
        "LARS has no momentum",
        "optim/optimizers.py",
        'torch._foreach_mul_(velocity, group["momentum"])',
        "torch._foreach_mul_(velocity, 0.0)",
        "test_lars_equals_simclrs_code_and_scales_vectors_only_with_decay_norms",
    ),
    Mutant(
        "LARS scales norms though told not to",
        "optim/optimizers.py",
        'if group["adapt"]:',
        "if True:",
        "test_lars_equals_simclrs_code_and_scales_vectors_only_with_decay_norms",
    ),
    Mutant(
        "LARS leaves the decay out of the gradient's norm",
        "optim/optimizers.py",
        "torch.stack(torch._foreach_norm(updates))",
        "torch.stack(torch._foreach_norm(gradients))",
        "test_lars_equals_simclrs_code_and_scales_vectors_only_with_decay_norms",
    ),
]
