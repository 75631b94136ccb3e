"""Known faults of the field, put into a copy of the package one at a time: each must fail a test.

    python tests/mutants.py [part of a name]

Most are faults that were published: in the seeds of this project, in its peers, or in the issues of both. A mutant that survives means
that a test is missing. It is not collected by pytest; `make mutants` runs it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutant:
    """One fault: in `file` of the package `old`, which stands there once, becomes `new`; one of `tests` (files, or single tests of one that
    takes long) must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # losses
    Mutant(
        "own row is a negative",
        "losses.py",
        'masked_fill(torch.eye(rows, dtype=torch.bool, device=z.device), float("-inf"))',
        "masked_fill(torch.eye(rows, dtype=torch.bool, device=z.device), 0.0)",
        "test_losses.py",
    ),
    Mutant("a tile masks the first rows, not its own", "losses.py", "logits[own, own + start]", "logits[own, own]", "test_losses.py"),
    Mutant("a pair's gradient from one end", "losses.py", ".mean(0).mul_(-2)", ".mean(0).mul_(-1)", "test_losses.py"),
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
    # learning rate and optimiser
    Mutant(
        "rate applied twice",
        "optim.py",
        "return rate if rate is not None else base * batch_size / 256",
        "rate = rate if rate is not None else base * batch_size / 256; return rate * rate",
        "test_optim.py",
    ),
    Mutant("rate scaled by 128", "optim.py", "base * batch_size / 256", "base * batch_size / 128", "test_optim.py"),
    Mutant("warm-up starts at zero", "optim.py", "peak * (step + 1) / warmup", "peak * step / warmup", "test_optim.py"),
    Mutant("horizon is an epoch, not the run", "optim.py", "max(1, steps - warmup)", "max(1, steps_per_epoch - warmup)", "test_optim.py"),
    Mutant("floor ignored", "optim.py", "floor + (peak - floor)", "(peak - floor)", "test_optim.py"),
    Mutant("norms never decayed", "optim.py", "if decay_norms:", "if False:", "test_optim.py"),
    Mutant("Muon's step is not orthogonal", "optim.py", "for _ in range(5):", "for _ in range(0):", "test_optim.py"),
    # views
    Mutant("one crop for the batch", "views.py", "*self.crop_box(u)", "*self.crop_box(u[:1].expand_as(u))", "test_views.py"),
    Mutant(
        "both views alike",
        "views.py",
        "return [self._view(x, self.choices(row), size) for row, size in zip(u, self.view_sizes, strict=True)]",
        "return [self._view(x, self.choices(u[0]), size) for size in self.view_sizes]",
        "test_views.py",
    ),
    Mutant("native: both views alike", "views.py", "self.choices(row).table()", "self.choices(u[0]).table()", "test_native.py"),
    Mutant("never flipped", "views.py", 'chosen("flip", self.flip_p)', 'chosen("flip", 0.0)', "test_views.py"),
    Mutant("reads beyond the crop", "pixels.py", " * inside[:, None, :]", "", "test_views.py"),
    Mutant("no antialias", "pixels.py", "scale.clamp(min=1)", "scale.clamp(min=1, max=1)", "test_views.py"),
    Mutant("one order of jitter for the batch", "pixels.py", ">> choices.order)", ">> choices.order * 0)", "test_views.py"),
    Mutant("hue in degrees of the wrong sense", "pixels.py", "hue = hue + 6 * shift", "hue = hue - 6 * shift", "test_views.py"),
    Mutant("contrast against black", "pixels.py", "luma(planes).mean((1, 2), keepdim=True)", "0 * luma(planes)", "test_views.py"),
    Mutant("other weights of gray", "pixels.py", "LUMA = (0.2989, 0.587, 0.114)", "LUMA = (0.3333, 0.3333, 0.3334)", "test_views.py"),
    Mutant(
        "jitter always on",
        "views.py",
        'u[:, COLUMN["jitter"]] < self.jitter_p',
        'u[:, COLUMN["jitter"]] < 2 * self.jitter_p',
        "test_views.py",
    ),
    Mutant("views do not depend on the step", "views.py", "philox(seed, step, 1 + view", "philox(seed, 0, 1 + view", "test_views.py"),
    # views, on a CPU
    Mutant("native: flip forgotten", "pixels.cpp", "choice[FLIP] > 0", "false", "test_native.py"),
    Mutant(
        "native: reads beyond the crop",
        "pixels.cpp",
        "std::max<int64_t>(int64_t(start), int64_t(std::floor(centre - reach)))",
        "std::max<int64_t>(0, int64_t(std::floor(centre - reach)))",
        "test_native.py",
    ),
    Mutant("native: contrast against gray", "pixels.cpp", "            std::fill(rest, rest + n, sum / n);\n", "", "test_native.py"),
    Mutant("native: first operation twice", "pixels.cpp", "int(choice[OPS + i])", "int(choice[OPS])", "test_native.py"),
    Mutant("native: blur not reflected", "pixels.cpp", "i < 0 ? -i :", "i < 0 ? 0 :", "test_native.py"),
    Mutant(
        "native: a share of the images left out", "pixels.cpp", "int64_t t = 0; t < threads", "int64_t t = 1; t < threads", "test_native.py"
    ),
    Mutant("native: hue the other way round", "pixels.cpp", "+ 6 * shift;", "- 6 * shift;", "test_native.py"),
    Mutant("native: other weights of gray", "pixels.cpp", "T(0.587)", "T(0.7152)", "test_native.py"),
    Mutant("native: no antialias", "pixels.cpp", "std::max(scale, T(1))", "T(1)", "test_native.py"),
    Mutant("native: solarizes the dark", "pixels.cpp", "v >= T(128. / 255)", "v < T(128. / 255)", "test_native.py"),
    Mutant("native: boxes not checked", "native.py", "if not inside.all() or", "if", "test_native.py"),
    Mutant("resumed with other views", "commands/pretrain.py", "if by != did:", "if False:", "test_native.py"),
    # layers, hastened on a CPU
    Mutant(
        "norm: ReLU lets every gradient through",
        "batchnorm.cpp",
        "!RELU || positive(made[c]) ? from[c] : 0;",
        "from[c];",
        "test_batchnorm.py",
    ),
    Mutant("norm: the shortcut's gradient past ReLU", "batchnorm.cpp", "passed[c] = half;", "passed[c] = from[c];", "test_batchnorm.py"),
    Mutant("norm: sums of floats for too long", "batchnorm.cpp", "BLOCK = 256;", "BLOCK = 4096;", "test_batchnorm.py"),
    Mutant(
        "norm: NaN rounded away", "batchnorm.cpp", "(bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : nearest", "nearest", "test_batchnorm.py"
    ),
    Mutant("norm: gradient without the mean's share", "batchnorm.cpp", "* along[c] + level[c]", "* along[c]", "test_batchnorm.py"),
    Mutant(
        "norm: a last block left out",
        "batchnorm.cpp",
        "(rows + BLOCK - 1) / BLOCK;",
        "std::max<int64_t>(1, rows / BLOCK);",
        "test_batchnorm.py",
    ),
    Mutant(
        "norm: the biased variance runs", "layers.py", "variances.mean(0) * (count / (count - 1))", "variances.mean(0)", "test_batchnorm.py"
    ),
    Mutant("norm: sizes not checked", "batchnorm.py", "t.shape == x.shape and t.dtype == torch.bfloat16", "True", "test_batchnorm.py"),
    Mutant("hastened though compile=false", "build.py", "hastened = machine.compile and", "hastened =", "test_batchnorm.py"),
    Mutant(
        "convolution: a block forgets it",
        "blocks.py",
        "y = norm_convolve(self.bn2, self.conv3, y)",
        "y = self.conv3(norm(self.bn2, y))",
        "test_batchnorm.py",
    ),
    Mutant("convolution: each map alone", "layers.py", "math.gcd(len(x), TOGETHER) if narrow", "1 if narrow", "test_convolution.py"),
    Mutant(
        "convolution: never side by side on the way forward", "layers.py", "or width > NARROWEST", "or width > 0", "test_convolution.py"
    ),
    Mutant(
        "convolution: the padding of the height",
        "layers.py",
        "(x.shape[3] + how.padding[1])",
        "(x.shape[3] + how.padding[0])",
        "test_convolution.py",
    ),
    Mutant("convolution: zeros for one pixel", "layers.py", "(x.shape[3] + how.padding[1])", "(x.shape[3] + 1)", "test_convolution.py"),
    Mutant(
        "convolution: neighbours without zeros between", "layers.py", "(x.shape[3] + how.padding[1])", "x.shape[3]", "test_convolution.py"
    ),
    Mutant(
        "convolution: maps begin between steps",
        "layers.py",
        "pitch * how.stride[1])\n    kind",
        "x.shape[3] + how.padding[1])\n    kind",
        "test_convolution.py",
    ),
    Mutant(
        "convolution: a batch that does not divide",
        "layers.py",
        "math.gcd(len(x), TOGETHER) if narrow",
        "TOGETHER if narrow",
        "test_convolution.py",
    ),
    Mutant(
        "convolution: zeros are taken for pixels",
        "layers.py",
        "[:, :, :, :width].transpose",
        "[:, :, :, -width:].transpose",
        "test_convolution.py",
    ),
    Mutant(
        "finite: only the largest", "probes/embed.py", "for extreme in torch.aminmax(x))", "for extreme in [x.max()])", "test_probes.py"
    ),
    Mutant(
        "between: kept after all",
        "layers.py",
        "ctx.epsilon, ctx.how = epsilon, how\n",
        "ctx.epsilon, ctx.how, ctx.between = epsilon, how, between\n",
        "test_convolution.py",
    ),
    Mutant(
        "between: a block forgets it",
        "blocks.py",
        "y = norm_convolve(self.bn1, self.conv2, convolve(self.conv1, x))\n        return",
        "y = convolve(self.conv2, norm(self.bn1, convolve(self.conv1, x)))\n        return",
        "test_batchnorm.py",
    ),
    Mutant("between: made by other statistics", "batchnorm.cpp", "if (!known) {", "if (true) {", "test_batchnorm.py"),
    Mutant("between: the gradient is not written over", "batchnorm.py", "grad if in_place else", "", "test_batchnorm.py"),
    Mutant(
        "between: its BatchNorm's statistics stand",
        "layers.py",
        "    y, means, variances = made\n    _follow(bn, means, variances, x)",
        "    y, means, variances = made",
        "test_convolution.py",
    ),
    # memory
    Mutant(
        "places: nothing is kept", "memory.cpp", "idle.emplace(found->second, place);", "munmap(place, found->second);", "test_memory.py"
    ),
    Mutant("places: one much too large is taken", "memory.cpp", "fit->first <= WIDER * size", "true", "test_memory.py"),
    Mutant("places: of the size alone", "memory.cpp", "fit->first <= WIDER * size", "fit->first == size", "test_memory.py"),
    Mutant("places: too small ones stay", "memory.cpp", "give_back(size, fit);", "", "test_memory.py"),
    Mutant("places: all small ones go", "memory.cpp", "if (size >= bytes) return;", "", "test_memory.py"),
    Mutant("places: larger ones make room too", "memory.cpp", "give_back(size, fit);", "give_back(size, idle.end());", "test_memory.py"),
    Mutant(
        "places: where memory ends it ends",
        "memory.cpp",
        "give_back(SIZE_MAX, idle.end());\n        place = map(size);",
        "place = map(size);",
        "test_memory.py",
    ),
    Mutant("places: small tensors go without", "memory.cpp", "if (idle.empty()) throw;", "throw;", "test_memory.py"),
    Mutant("places: in use and idle at once", "memory.cpp", "        idle.erase(fit);\n", "", "test_memory.py"),
    Mutant(
        "places: two threads at once",
        "memory.cpp",
        "    std::lock_guard<std::mutex> lock(mutex);\n    const auto fit",
        "    const auto fit",
        "test_memory.py",
    ),
    Mutant(
        "places: a fork keeps the lock",
        "memory.cpp",
        "[] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); }",
        "nullptr, nullptr, nullptr",
        "test_memory.py",
    ),
    Mutant(
        "places: one library for every torch", "native.py", "version, torch.__version__, *machine", "version, *machine", "test_memory.py"
    ),
    # backbones
    Mutant(
        "stem pads by two",
        "backbones.py",
        "nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=False)",
        "nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=2, bias=False)",
        "test_backbones.py",
    ),
    Mutant("ImageNet stem on small images", "backbones.py", "if image_size <= 64:", "if image_size <= 16:", "test_backbones.py"),
    Mutant("max-pooling kept", "backbones.py", "net.maxpool = nn.Identity()", "pass", "test_backbones.py"),
    Mutant(
        "stem rotated, not whitened", "backbones.py", "directions / (variance + WHITEN_EPSILON).sqrt()", "directions", "test_backbones.py"
    ),
    # read-outs
    Mutant("probe in train mode", "probes/embed.py", "    module.eval()", "    module.train()", "test_probes.py"),
    Mutant("modes not restored", "probes/embed.py", "part.training = mode", "part.training = False", "test_probes.py"),
    Mutant(
        "every k votes with all", "probes/knn.py", "vote(found, bank_labels, k=k,", "vote(found, bank_labels, k=max(ks),", "test_knn.py"
    ),
    Mutant("neighbours by dot product", "probes/knn.py", "product * inverse if", "product if", "test_knn.py"),
    Mutant("any of those that tie with the last neighbour", "probes/knn.py", "if beyond.any():", "if False:", "test_knn.py"),
    Mutant("weights that underflow", "probes/knn.py", "((similarity - similarity[:, :1]) /", "(similarity /", "test_knn.py"),
    Mutant(
        "weight decay chosen on the training rows",
        "probes/linear.py",
        ".accuracy(val_features, val_labels)",
        ".accuracy(features, labels)",
        "test_probes.py",
    ),
    Mutant(
        "bias decayed", "probes/linear.py", "share.sum(2, keepdim=True)]", "share.sum(2, keepdim=True) + decay * bias]", "test_probes.py"
    ),
    Mutant("decay tried on the rows that choose", "probes/linear.py", "rows=len(features), ", "", "test_probes.py"),
    Mutant(
        "optimum of the training rows alone",
        "probes/linear.py",
        "tried[best : best + 1], bar",
        "tried[best : best + 1], rows=len(features), bar",
        "test_probes.py",
    ),
    Mutant("8 bits: bound left out", "probes/knn.cpp", "most = product + bound;", "most = product;", "test_knn.py"),
    Mutant("8 bits: the query's rounding forgotten", "probes/knn.cpp", "norms * q.error", "norms * 0", "test_knn.py"),
    Mutant("8 bits: the bank's rounding forgotten", "probes/knn.cpp", "errors * q.norm", "errors * 0", "test_knn.py"),
    Mutant(
        "8 bits: k-th by what it is at most",
        "probes/knn.cpp",
        "return product - bound - half[row]",
        "return product + bound - half[row]",
        "test_knn.py",
    ),
    Mutant("8 bits: marked by the best of the k", "probes/knn.cpp", "worst = std::max(worst", "worst = std::min(worst", "test_knn.py"),
    Mutant(
        "8 bits: not looked at again", "probes/knn.cpp", "apart += (one - other) * (one - other);", "apart += one + other;", "test_knn.py"
    ),
    Mutant("8 bits: the last panel left out", "probes/knn.cpp", "(rows + PANEL - 1) / PANEL;", "rows / PANEL;", "test_knn.py"),
    Mutant(
        "weight decay chosen on test",
        "readout.py",
        'data.split("train"), data.split("val"), data.split("test"), SEEN',
        'data.split("train"), data.split("test"), data.split("test"), SEEN',
        "test_cli.py::test_wrong_test_labels_change_the_final_accuracy_and_nothing_else test_cli.py::test_every_read_out_leaves_the_run_as_it_is_and_test_labels_change_its_accuracy_alone",
    ),
    Mutant(
        "tuning reads the test set",
        "readout.py",
        'data.split("val"), "val"',
        'data.split("test"), "val"',
        "test_cli.py::test_a_run_that_tunes_never_touches_the_test_set",
    ),
    Mutant(
        "monitor reads the test set",
        "train.py",
        'parts.dataset.split("val")',
        'parts.dataset.split("test")',
        "test_cli.py::test_a_run_that_tunes_never_touches_the_test_set",
    ),
    # data
    Mutant("val stays in train", "data/dataset.py", "rest[self.val_rows] = False", "rest[self.val_rows] = True", "test_data.py"),
    Mutant(
        "every epoch in one order",
        "data/dataset.py",
        "key=np.array([seed, epoch], np.uint64)",
        "key=np.array([seed, 0], np.uint64)",
        "test_data.py",
    ),
    # the loop, runs and configuration
    Mutant("gradients pile up", "train.py", "optimizer.zero_grad(set_to_none=True)", "pass", "test_stored_losses.py"),
    Mutant(
        "labels handed to every method",
        "build.py",
        "if method.uses_labels else None",
        "if True else None",
        "test_cli.py::test_labels_are_handed_only_to_methods_that_use_them",
    ),
    Mutant("optimiser not restored", "train.py", 'parts.optimizer.load_state_dict(state["optimizer"])', "pass", "test_resume.py"),
    Mutant("metrics not cut back", "train.py", 'run.truncate_metrics(state["step"])', "pass", "test_resume.py"),
    Mutant(
        "checksum ignored",
        "checkpoint.py",
        "if hashlib.sha256(payload).hexdigest().encode() != head[len(MAGIC) :]:",
        "if False:",
        "test_runs.py",
    ),
    Mutant("checkpoints may run code", "checkpoint.py", "weights_only=True", "weights_only=False", "test_runs.py"),
    Mutant(
        "weights of NaN are kept",
        "train.py",
        "method if saving or keeping else None",
        "None",
        "test_cli.py::test_n1_what_is_not_finite_stops_the_run_keeps_the_last_good_weights_and_can_be_seen_again",
    ),
    Mutant(
        "what diverged is any failure",
        "cli.py",
        "if isinstance(error, FloatingPointError):",
        "if False:",
        "test_cli.py::test_n1_what_is_not_finite_stops_the_run_keeps_the_last_good_weights_and_can_be_seen_again",
    ),
    Mutant(
        "seals not looked at",
        "checkpoint.py",
        'if "sha256" in content and (',
        "if False and (",
        "test_reliability.py::test_c5_damage_to_a_file_of_a_run_is_seen_and_named_or_harmless",
    ),
    Mutant(
        "another run's checkpoint",
        "checkpoint.py",
        'state.get("run", run) != run',
        "False",
        "test_reliability.py::test_c5_damage_to_a_file_of_a_run_is_seen_and_named_or_harmless",
    ),
    Mutant(
        "weights' seal not looked at",
        "build.py",
        'if "sha256" in about and',
        "if False and",
        "test_reliability.py::test_c5_damage_to_a_file_of_a_run_is_seen_and_named_or_harmless",
    ),
    Mutant("bad images left out unasked", "data/folder.py", 'if bad and on_bad == "stop":', "if False:", "test_folder.py"),
    Mutant("16-bit images cut off", "data/folder.py", 'if shown.mode.startswith("I"):', "if False:", "test_folder.py"),
    Mutant("images held out are trained on", "data/dataset.py", "train_images=images[rest]", "train_images=images", "test_folder.py"),
    Mutant(
        "labels of test images trained on",
        "data/dataset.py",
        "torch.cat([self.labels, torch.full_like(self.test_labels, -1)])",
        "torch.cat([self.labels, self.test_labels])",
        "test_data.py",
    ),
    Mutant(
        "trained on test images and not said",
        "readout.py",
        "SEEN if cfg.train_on",
        '"test" if cfg.train_on',
        "test_cli.py::test_test_images_may_be_trained_on_without_their_labels_and_every_number_says_so",
    ),
    Mutant("lock ignored", "lock.py", "        with file:\n            raise _held(path, file) from None", "        pass", "test_runs.py"),
    Mutant("+key accepted", "config.py", "if key != bare:", "if False:", "test_config.py"),
    Mutant("ranges ignored", "config.py", "if not wanted.accepts(value):", "if False:", "test_config.py"),
    # momentum encoder and queue
    Mutant(
        "keys not normalised",
        "methods/moco.py",
        "F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)",
        "z",
        "test_momentum.py",
    ),
    Mutant("key encoder gets gradients", "momentum.py", ".requires_grad_(False)", "", "test_momentum.py"),
    Mutant("momentum the wrong way round", "momentum.py", ", 1 - decay)", ", decay)", "test_momentum.py"),
    Mutant(
        "queue does not go around",
        "momentum.py",
        "torch.arange(len(keys), device=keys.device)) % size",
        "torch.arange(len(keys), device=keys.device)).clamp(max=size - 1)",
        "test_momentum.py",
    ),
    Mutant(
        "queue's cursor stands still",
        "momentum.py",
        "        self.cursor.copy_((self.cursor + len(keys)) % size)\n",
        "",
        "test_momentum.py",
    ),
    Mutant(
        "the key is not among the candidates",
        "losses.py",
        "torch.cat([own, others], 1) / temperature",
        "torch.cat([own - own.detach(), others], 1) / temperature",
        "test_losses.py",
    ),
    # archives
    Mutant("archive's hash not checked", "data/cifar.py", "if found != source.sha256:", "if False:", "test_cifar.py"),
    Mutant(
        "free unpickling",
        "data/pickles.py",
        "            return ALLOWED[module, name]\n",
        "            return super().find_class(module, name)\n",
        "test_cifar.py",
    ),
    Mutant("a broken download taken for a whole one", "data/download.py", "if digest(part) == sha256:", "if True:", "test_cifar.py"),
    Mutant("a download always begins again", "data/download.py", '"ab" if goes_on else "wb"', '"wb"', "test_cifar.py"),
    # what the review of MoCo and of the reader asked for
    Mutant(
        "own key among the negatives of the second half",
        "methods/moco.py",
        "other, others = info_nce(self._query(b), key_a, negatives, self.temperature)",
        "self.queue.enqueue(key_b); other, others = info_nce(self._query(b), key_a, self.queue.keys.clone(), self.temperature)",
        "test_momentum.py",
    ),
    Mutant(
        "keys in the queries' order",
        "methods/moco.py",
        "self.momentum_encoder(x[spread_order(n, splits, x.device)])",
        "self.momentum_encoder(x)",
        "test_momentum.py",
    ),
    Mutant("keys not put back in order", "methods/moco.py", "[spread_order(n, n // splits, x.device)]", "", "test_momentum.py"),
    Mutant(
        "negatives read after they were overwritten", "methods/moco.py", "self.queue.keys.clone()", "self.queue.keys", "test_momentum.py"
    ),
    Mutant(
        "only the backbone followed",
        "methods/moco.py",
        "ema_update(self.momentum_encoder[1], self.projector, self.ema_decay)",
        "pass",
        "test_momentum.py",
    ),
    Mutant(
        "projector's BatchNorm sees the whole batch",
        "methods/moco.py",
        "split_batchnorm(self.projector, bn_splits)",
        "pass",
        "test_momentum.py",
    ),
    Mutant(
        "one BatchNorm over the whole batch", "momentum.py", "enumerate(x.chunk(self.splits))", "enumerate(x.chunk(1))", "test_momentum.py"
    ),
    Mutant(
        "LARS has no momentum",
        "optim.py",
        'torch._foreach_mul_(velocity, group["momentum"])',
        "torch._foreach_mul_(velocity, 0.0)",
        "test_optim.py",
    ),
    Mutant("LARS scales norms though told not to", "optim.py", 'if group["adapt"]:', "if True:", "test_optim.py"),
    Mutant(
        "short batch dropped though kept",
        "data/dataset.py",
        "return n // batch_size if drop_last else -(-n // batch_size)",
        "return n // batch_size",
        "test_data.py",
    ),
    Mutant("links followed", "data/cifar.py", " or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE)", "", "test_cifar.py"),
    Mutant("a member twice", "data/cifar.py", "if wanted[member.name] in blobs:", "if False:", "test_cifar.py"),
    Mutant("a changed file in the folder", "data/cifar.py", "if found != source.files[name]:", "if False:", "test_cifar.py"),
    Mutant("unpacked without a bound", "data/cifar.py", "if self.left < 0:", "if False:", "test_cifar.py"),
    Mutant(
        "appended at another place",
        "data/download.py",
        ' and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")',
        "",
        "test_cifar.py",
    ),
    # the seeds' recipes, commands and read-outs
    Mutant("bicubic crops are bilinear", "pixels.py", "keys(distance) if cubic else", "keys(distance) if False else", "test_views.py"),
    Mutant("native: bicubic overshoots", "pixels.cpp", "if (s.cubic)", "if (false)", "test_native.py"),
    Mutant("the rate drops at the start", "optim.py", "step >= steps - share * steps", "step >= share * steps", "test_optim.py"),
    Mutant(
        "the first images in place of a stratified part",
        "data/dataset.py",
        "rows = stratified(arrays.train_labels, train_size, seed=2)",
        "rows = np.arange(train_size)",
        "test_data.py",
    ),
    Mutant("augmented probe moves BatchNorm", "probes/minibatch.py", "    with frozen(module):", "    if True:", "test_minibatch.py"),
    Mutant("augmented probe builds a graph", "probes/minibatch.py", "torch.no_grad()(", "(", "test_minibatch.py"),
    Mutant(
        "augmented probe sees the same crops", "probes/minibatch.py", "views.draw(seed, step,", "views.draw(seed, 0,", "test_minibatch.py"
    ),
    Mutant("probe's rate is not annealed", "probes/minibatch.py", 'schedule="cosine"', 'schedule="constant"', "test_minibatch.py"),
    Mutant(
        "probe's epochs in one order",
        "probes/minibatch.py",
        "philox(seed, epoch, ORDER, n)",
        "philox(seed, 0, ORDER, n)",
        "test_minibatch.py",
    ),
    Mutant("first seed's probe at one rate", "probes/protocols.py", "0.1 * batch_size / 256", "0.1", "test_probes.py"),
    Mutant("Euclidean without the banks' squares", "probes/knn.py", "torch.sub(product, squares, alpha=0.5)", "product", "test_knn.py"),
    Mutant("Euclidean far from zero", "probes/knn.py", "FAR = 10.0", "FAR = 1e30", "test_knn.py"),
    Mutant("linear evaluation of any run", "runs.py", "if like.items() <= config(path).items()]", "if True]", "test_seeds.py"),
    Mutant("latest is the one read out last", "runs.py", "(path / BACKBONE).stat()", "(path / SUMMARY).stat()", "test_seeds.py"),
    Mutant("MoCo's decay is SGD's momentum", "seeds.py", '"moco_m": "ema_decay"', '"moco_m": "momentum"', "test_seeds.py"),
    Mutant(
        "last weights in place of an epoch's", "commands/evaluate.py", "runs.epoch_file(path, cfg.load_epoch)", "weights", "test_seeds.py"
    ),
    # what a reader of the whole project found
    Mutant(
        "an epoch is lost where nothing else is due",
        "train.py",
        "probing or keeping or saving",
        "probing or saving",
        "test_cli.py::test_an_epoch_is_kept_whether_or_not_its_step_is_saved_probed_or_logged",
    ),
    Mutant(
        "a collapse is not said",
        "train.py",
        "if width < SPREAD_FLOOR or rank < 2:",
        "if False:",
        "test_cli.py::test_a_collapse_is_said_while_it_happens",
    ),
    Mutant(
        "read out on other data", "runs.py", "if then != digest:", "if False:", "test_cli.py::test_other_data_than_the_runs_are_refused"
    ),
    Mutant("the clock counts what compiles", "progress.py", "if not compiling:", "if True:", "test_progress.py"),
    Mutant("probes of other rates in one mean", "tables.py", " if _how(row) == _how(rows[0])]", "]", "test_tables.py"),
    Mutant(
        "augmented probe in other batches than the run",
        "probes/protocols.py",
        "replace(_AUGMENTED[protocol], batch_size=batch_size)",
        "_AUGMENTED[protocol]",
        "test_probes.py",
    ),
    Mutant("fine-tuning moves the encoder", "probes/finetune.py", "copy.deepcopy(module)", "module", "test_minibatch.py"),
    Mutant("fine-tuned on a batch of one", "probes/minibatch.py", "per_epoch -= 1", "pass", "test_minibatch.py"),
    Mutant("a seed of its own for evaluate", "commands/evaluate.py", 'else stored["seed"]', "else cfg.seed", "test_cli.py"),
    Mutant("fine-tuning in MoCo's parts", "probes/finetune.py", "part.splits = 1", "pass", "test_minibatch.py"),
    Mutant("fine-tuning trains the layer alone", "probes/finetune.py", "along=net.parameters()", "along=()", "test_minibatch.py"),
    Mutant(
        "cached views are always the first",
        "probes/minibatch.py",
        "cache[step // per_epoch % sets, rows]",
        "cache[0, rows]",
        "test_minibatch.py",
    ),
    Mutant(
        "another data set's number in a table",
        "tables.py",
        ' and "on" not in row]',
        "]",
        "test_cli.py::test_a_run_is_read_out_on_another_data_set",
    ),
    Mutant(
        "projections of other weights",
        "commands/evaluate.py",
        'if state["step"] != summary["train"]["steps"]:',
        "if False:",
        "test_cli.py::test_projections_of_another_step_than_the_summarys_are_refused",
    ),
    Mutant(
        "alignment of a view with itself",
        "readout.py",
        "alignment(a, b)",
        "alignment(a, a)",
        "test_cli.py::test_the_summary_has_accuracies_of_each_class_and_says_how_the_features_lie",
    ),
    Mutant("freed memory goes back", "memory.py", "mallopt(mmap_max, 0)", "mallopt(mmap_max, 65536)", "test_memory.py"),
    Mutant("seeds of other recipes in one mean", "tables.py", "if key not in APART", "if False", "test_tables.py"),
]


def run(folder: Path, tests: str, *more: str) -> subprocess.CompletedProcess[str]:
    """pytest on some files of a copy, stopping at the first failure."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    files = [f"tests/{name}" for name in tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "--tb=line", *more, *files]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def copy(folder: Path) -> None:
    """The package and its tests."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("twoviews", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for path in (
        *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile")),
        *ROOT.glob("*.py"),
        *ROOT.glob("*.yml"),
    ):
        shutil.copy(path, folder / path.name)


def try_mutant(mutant: Mutant) -> str | None:
    """None if a test fails, otherwise why the mutant counts as alive."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy(folder)
        path = folder / "twoviews" / mutant.file
        source = path.read_text(encoding="utf-8")
        if source.count(mutant.old) != 1:
            return f"stands {source.count(mutant.old)} times in {mutant.file}, expected once"
        path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        done = run(folder, mutant.tests)
        if done.returncode != 1:  # 1: a test failed; anything else is no verdict
            return f"survives {mutant.tests} (pytest exit code {done.returncode})"
    return None


def main() -> int:
    """Run the tests on the untouched copy, then on every mutant, two at a time."""
    wanted = [m for m in MUTANTS if not sys.argv[1:] or sys.argv[1] in m.name]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        copy(Path(scratch))
        done = run(Path(scratch), " ".join(sorted({m.tests for m in wanted})), "-n", "2", "--dist", "loadfile")
        if done.returncode:
            print(done.stdout[-3000:])
            print("the tests fail without any mutant")
            return 1
    alive = 0
    with ThreadPoolExecutor(2) as pool:
        for mutant, why in zip(wanted, pool.map(try_mutant, wanted), strict=True):
            alive += why is not None
            print(f"{'ALIVE' if why else 'killed':7} {mutant.name}{f': {why}' if why else ''}", flush=True)
    print(f"{len(wanted) - alive} of {len(wanted)} mutants killed in {time.monotonic() - began:.0f} s")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
