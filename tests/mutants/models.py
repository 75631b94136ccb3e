"""Faults in the backbones, the momentum parts and the methods."""

from mutants.mutant import Mutant

STEM = "test_the_imagenet_stem_is_used_above_64_pixels"
WHITENED = "test_a_whitened_stem_gives_uncorrelated_outputs_of_unit_variance_and_both_signs"

MUTANTS = [
    # backbones
    Mutant(
        "stem pads by two",
        "models/resnet.py",
        "nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=False)",
        "nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=2, bias=False)",
        STEM,
    ),
    Mutant("ImageNet stem on small images", "models/resnet.py", "if image_size <= 64:", "if image_size <= 16:", STEM),
    Mutant("max-pooling kept", "models/resnet.py", "net.maxpool = nn.Identity()", "pass", STEM),
    Mutant("stem rotated, not whitened", "models/resnet.py", "directions / (variance + WHITEN_EPSILON).sqrt()", "directions", WHITENED),
    Mutant(
        "stem_init=torch changes nothing",
        "models/resnet.py",
        'net.get_submodule("conv1").reset_parameters()',
        "pass",
        "test_stem_init_chooses_the_start_of_the_first_convolution_and_changes_no_other",
    ),
    Mutant(
        "a recipe's stem_init is not used",
        "build.py",
        ", stem_init=stem_init)",
        ")",
        "test_the_first_convolution_starts_as_in_the_published_code",
    ),
    Mutant("a bias before BatchNorm", "models/heads.py", "bias=not bn", "bias=True", "models/test_heads.py"),
    # momentum encoder and queue
    Mutant("keys not normalised", "models/momentum.py", "F.normalize(exact(z), dim=1)", "z", "methods/test_moco.py"),
    Mutant("the momentum encoder gets gradients", "models/momentum.py", ".requires_grad_(False)", "", "models/test_momentum.py"),
    Mutant("momentum the wrong way round", "models/momentum.py", "trained, 1 - decay)", "trained, decay)", "models/test_momentum.py"),
    Mutant(
        "the queue does not wrap around",
        "models/momentum.py",
        "torch.arange(len(keys), device=keys.device)) % size",
        "torch.arange(len(keys), device=keys.device)).clamp(max=size - 1)",
        "models/test_momentum.py",
    ),
    Mutant(
        "the queue's cursor does not move",
        "models/momentum.py",
        "        self.cursor.copy_((self.cursor + len(keys)) % size)\n",
        "",
        "models/test_momentum.py",
    ),
    Mutant(
        "own key among the negatives of the second half",
        "methods/moco.py",
        "            query = self.project(views[i])\n",
        "            query = self.project(views[i])\n            self.queue.enqueue(keys[1 - i]); negatives = self.queue.keys.clone()\n",
        "methods/test_moco.py",
    ),
    Mutant(
        "keys computed in the order of the queries",
        "models/momentum.py",
        "x[spread_order(n, splits, x.device)[distributed.rows(n)]]",
        "x[distributed.rows(n)]",
        "methods/test_moco.py",
    ),
    Mutant("keys not put back in order", "models/momentum.py", "[spread_order(n, n // splits, x.device)]", "", "methods/test_moco.py"),
    Mutant(
        "negatives read after they were overwritten",
        "methods/moco.py",
        "self.queue.keys.clone()",
        "self.queue.keys",
        "methods/test_moco.py",
    ),
    Mutant(
        "only the backbone has a momentum copy that follows",
        "methods/moco.py",
        "ema_update(self.momentum_encoder[1], self.projector, self.ema_decay)",
        "pass",
        "methods/test_moco.py",
    ),
    Mutant(
        "projector's BatchNorm sees the whole batch",
        "methods/moco.py",
        "for module in (self.backbone, self.projector) if bn_splits > 1",
        "for module in (self.backbone,) if bn_splits > 1",
        "methods/test_moco.py",
    ),
    Mutant(
        "one BatchNorm over the whole batch",
        "models/batchnorm.py",
        "enumerate(x.chunk(self.splits))",
        "enumerate(x.chunk(1))",
        "models/test_batchnorm.py",
    ),
    Mutant(
        "split BatchNorm drops dtype and device",
        "models/batchnorm.py",
        "vars(new).update(vars(child))",
        "new.load_state_dict(child.state_dict(), strict=False)",
        "test_a_split_batchnorm_keeps_dtype_device_options_mode_and_frozen_parameters",
    ),
    # methods
    Mutant(
        "SimCLR: one forward pass for all views whatever the recipe says",
        "models/forward.py",
        "if not one_forward:",
        "if False:",
        "methods/test_simclr.py",
    ),
    Mutant(
        "SimCLR: the loss of h, not of z",
        "methods/simclr.py",
        "of_views(self.project, views",
        "of_views(self.backbone, views",
        "methods/test_simclr.py",
    ),
    Mutant(
        "supervised: labels interleaved, views stacked",
        "methods/supervised.py",
        "labels.repeat(len(views))",
        "labels.repeat_interleave(len(views))",
        "methods/test_supervised.py",
    ),
    Mutant(
        "labels given to every method",
        "build.py",
        "if method.uses_labels else None",
        "if True else None",
        "test_labels_are_passed_only_to_methods_that_use_them",
    ),
    Mutant(
        "compiled sub-batches share their statistics",
        "models/batchnorm.py",
        "over = (1, *range(3, parts.ndim))",
        "over = (0, 1, *range(3, parts.ndim))",
        "test_split_batchnorm_equals_forward_passes_of_the_sub_batches",
    ),
]
