"""Known faults of each method, at least three for each."""

from mutants.mutant import Mutant

LOSSES = "losses/test_naive.py"
SIMSIAM = "test_simsiam_predicts_the_mean_of_the_other_views_and_stops_their_gradient"
BYOL = "test_byol_sums_over_views_the_distance_to_the_teachers_projections"
TEACHER = "test_the_momentum_copy_follows_after_the_step_with_a_decay_that_rises_as_a_cosine"
MOCO_V3 = "test_moco_v3_classifies_the_key_of_another_view_within_the_batch_times_2t"
NNCLR = "test_nnclr_takes_neighbours_from_the_queue_before_it_enters_the_first_view"
SWAV = "test_swav_assigns_full_views_with_the_queue_and_predicts_from_all_others"
PROTOTYPES = "test_swavs_prototypes_have_unit_length_after_every_step_and_are_frozen_at_first"
DINO = "test_dino_predicts_the_centred_sharpened_teacher_of_full_views_and_then_moves_the_centre"
PAIRS = "test_barlow_twins_and_vicreg_are_means_over_pairs_of_views"
WMSE = "test_wmse_compares_views_that_were_whitened_each_by_itself"
MUTANTS = [
    Mutant("SimSiam: no stop-gradient", "methods/simsiam.py", "target.detach()", "target", SIMSIAM),
    Mutant("SimSiam: no predictor", "methods/simsiam.py", "cosine(p, target", "cosine(z[i], target", SIMSIAM),
    Mutant("SimSiam: the target holds the view itself", "methods/simsiam.py", " if j != i]).mean(0)", "]).mean(0)", SIMSIAM),
    Mutant(
        "SimSiam: the predictor's rate decays",
        "methods/simsiam.py",
        ', "constant_lr": True}',
        "}",
        "test_the_last_batchnorm_of_simsiams_projector_has_no_scale_and_shift_and_its_predictor_keeps_the_rate",
    ),
    Mutant(
        "SimSiam: the last BatchNorm has scale and shift",
        "methods/simsiam.py",
        "        without_scale_and_shift(self.projector[-1])\n",
        "",
        "test_the_last_batchnorm_of_simsiams_projector_has_no_scale_and_shift_and_its_predictor_keeps_the_rate",
    ),
    Mutant("BYOL: each view predicts itself", "methods/byol.py", "if i != j:", "if i == j or len(p) > 2:", BYOL),
    Mutant(
        "BYOL: the target is the student", "methods/byol.py", "targets = of_views(self.teacher,", "targets = of_views(self.project,", BYOL
    ),
    Mutant(
        "BYOL: the teacher's projector stays as it began",
        "methods/byol.py",
        "        ema_update(self.teacher[1], self.projector, decay)\n",
        "",
        TEACHER,
    ),
    Mutant(
        "BYOL: the teacher's decay does not rise",
        "methods/byol.py",
        "cosine_ramp(self.ema_decay, self.ema_decay_end",
        "cosine_ramp(self.ema_decay, self.ema_decay",
        TEACHER,
    ),
    Mutant(
        "EMA with the weights exchanged",
        "models/momentum.py",
        "torch._foreach_sub(trained, copies), 1 - decay)",
        "torch._foreach_sub(trained, copies), decay)",
        TEACHER,
    ),
    Mutant("MoCo v3: without the factor 2T", "methods/moco_v3.py", "return 2 * self.temperature * loss", "return loss", MOCO_V3),
    Mutant(
        "MoCo v3: keys of the trained encoder", "methods/moco_v3.py", "of_views(self.momentum_encoder,", "of_views(self.project,", MOCO_V3
    ),
    Mutant("MoCo v3: no predictor", "methods/moco_v3.py", "of_views(self.predictor, z,", "of_views(lambda x: x, z,", MOCO_V3),
    Mutant(
        "MoCo v3: the momentum copy never moves",
        "methods/moco_v3.py",
        "        ema_update(self.momentum_encoder[0], self.backbone, decay)\n",
        "",
        TEACHER,
    ),
    Mutant(
        "NNCLR: the view itself in place of its neighbour",
        "methods/nnclr.py",
        "[self.queue.nearest(x) for x in z]",
        "[x.detach() for x in z]",
        NNCLR,
    ),
    Mutant("NNCLR: the farthest", "models/momentum.py", ".argmax(1)", ".argmin(1)", NNCLR),
    Mutant("NNCLR: no predictor", "methods/nnclr.py", "of_views(self.predictor, z,", "of_views(lambda x: x, z,", NNCLR),
    Mutant(
        "NNCLR: the queue is not updated",
        "methods/nnclr.py",
        "        self.queue.enqueue(F.normalize(distributed.gather(exact(z[0].detach())), dim=1))\n",
        "",
        NNCLR,
    ),
    Mutant(
        "SwAV: a view predicts its own assignment",
        "methods/swav.py",
        "for j in range(len(z)) if j != i]",
        "for j in range(len(z)) if j == i]",
        SWAV,
    ),
    Mutant("SwAV: prototypes not normalised", "methods/swav.py", "        self.prototypes.normalize()\n", "        pass\n", PROTOTYPES),
    Mutant(
        "SwAV: prototypes never frozen",
        "methods/swav.py",
        "        self.prototypes.before_step(progress, frozen_until=self.freeze_until)\n",
        "        pass\n",
        PROTOTYPES,
    ),
    Mutant(
        "SwAV: the queue counts from the first step", "methods/swav.py", "(progress is None or progress >= self.queue_from)", "True", SWAV
    ),
    Mutant("SwAV: small views are assigned", "methods/swav.py", "if x.shape[-1] == max(", "if x.shape[-1] <= max(", SWAV),
    Mutant(
        "SwAV: assignments of the nearest prototype alone",
        "losses/assignments.py",
        "for _ in range(iterations):",
        "for _ in range(0):",
        LOSSES,
    ),
    Mutant("Sinkhorn: prototypes first", "losses/assignments.py", "        log = log - log.logsumexp(0)\n", "", LOSSES),
    Mutant("DINO: the centre is not updated", "methods/dino.py", ", 1 - self.centre_decay)", ", 0.0)", DINO),
    Mutant("DINO: not centred", "methods/dino.py", "(t - self.centre) / temperature", "t / temperature", DINO),
    Mutant(
        "DINO: the teacher is not sharpened",
        "methods/dino.py",
        "(t - self.centre) / temperature",
        "(t - self.centre) / self.temperature",
        DINO,
    ),
    Mutant(
        "DINO: the teacher's prototypes never move",
        "methods/dino.py",
        "(self.backbone, self.projector, self.prototypes), strict=True)",
        "(self.backbone, self.projector), strict=False)",
        TEACHER,
    ),
    Mutant(
        "DINO: the last layer is not weight-normed",
        "methods/dino.py",
        "weight_norm=True",
        "weight_norm=False",
        "test_dinos_last_layer_is_weight_normed_and_frozen_at_first",
    ),
    Mutant(
        "DINO: the student is evaluated in place of the teacher",
        "methods/dino.py",
        "if self.probe_teacher else",
        "if False else",
        "test_dinos_teacher_can_be_evaluated_in_place_of_the_student",
    ),
    Mutant(
        "Barlow Twins: every correlation counts alike",
        "losses/statistics.py",
        "on + off_diagonal * (error.sum() - on)",
        "error.sum()",
        LOSSES,
    ),
    Mutant(
        "Barlow Twins: columns not centred", "losses/statistics.py", "return (x - mean) * torch.rsqrt", "return x * torch.rsqrt", LOSSES
    ),
    Mutant(
        "Barlow Twins: both views standardised together",
        "losses/statistics.py",
        "a, b = (_standardised(exact(x)) for x in (a, b))",
        "a, b = _standardised(torch.cat([exact(a), exact(b)])).chunk(2)",
        LOSSES,
    ),
    Mutant("Barlow Twins: the loss is not scaled", "methods/barlow_twins.py", "self.loss_scale * sum", "sum", PAIRS),
    Mutant("VICReg: the root of a variance of 0", "losses/statistics.py", "x.var(0) + STD_EPS", "x.var(0)", LOSSES),
    Mutant("VICReg: the variance term of one view", "losses/statistics.py", "for x in (a, b)]\n", "for x in (a, a)]\n", LOSSES),
    Mutant(
        "VICReg: variances among the covariances",
        "losses/statistics.py",
        "(squares.sum() - squares.diagonal().sum())",
        "squares.sum()",
        LOSSES,
    ),
    Mutant("W-MSE: not centred", "losses/statistics.py", "        x = x - x.mean(1, keepdim=True)\n", "", LOSSES),
    Mutant(
        "W-MSE: the covariance of all rows",
        "losses/statistics.py",
        "z.double()).view(-1, size, z.shape[1])",
        "z.double()).view(1, -1, z.shape[1])",
        LOSSES,
    ),
    Mutant("W-MSE: whitened in float32", "losses/statistics.py", 'exact(z) if z.device.type == "mps" else z.double()', "exact(z)", LOSSES),
    Mutant(
        "W-MSE: the factor transposed",
        "losses/statistics.py",
        "solve_triangular(factor, x.mT, upper=False)",
        "solve_triangular(factor.mT, x.mT, upper=True)",
        LOSSES,
    ),
    Mutant(
        "W-MSE: views are not whitened", "methods/wmse.py", "[whitened(x, self.whitening_size, self.whitening_eps) for x in z]", "z", WMSE
    ),
    Mutant("DCL: positives in the denominator", "losses/contrastive.py", "own[:, None] % images == torch", "own[:, None] == torch", LOSSES),
    Mutant(
        "DCL: only the anchor's own view leaves the denominator", "losses/contrastive.py", "z.device) % images\n", "z.device)\n", LOSSES
    ),
    Mutant(
        "DCL: the loss of SimCLR",
        "methods/dcl.py",
        "import decoupled",
        "import nt_xent as decoupled",
        "test_dcl_and_supcon_are_simclr_with_another_loss",
    ),
    Mutant("SupCon: an anchor is its own positive", "losses/contrastive.py", "== every) & ~itself", "== every)", LOSSES),
    Mutant(
        "SupCon: labels of images in the order of rows",
        "losses/contrastive.py",
        "labels.repeat(views)",
        "labels.repeat_interleave(views)",
        LOSSES,
    ),
    Mutant(
        "SupCon: the sum over positives, not their mean",
        "losses/contrastive.py",
        "log_p, 0).sum(1) / positive.sum(1)",
        "log_p, 0).sum(1)",
        LOSSES,
    ),
    Mutant(
        "MoCo: a query is compared with the key of its own view",
        "methods/moco.py",
        "for j in answering if j != i]",
        "for j in answering if j == i or not self.symmetric]",
        "test_moco_with_three_views_compares_each_query_with_the_keys_of_the_other_views",
    ),
    Mutant(
        "a short queue is accepted",
        "models/momentum.py",
        "not least <= size <= images:",
        "not size <= images:",
        "test_a_queue_that_cannot_hold_the_keys_of_a_step_or_is_longer_than_the_data_is_refused",
    ),
    Mutant("the ramp is a straight line", "models/momentum.py", "(torch.cos(torch.pi * progress) + 1) / 2", "(1 - progress)", TEACHER),
]
