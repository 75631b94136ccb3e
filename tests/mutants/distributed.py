"""Faults of several processes: what one of them computes, draws, logs or writes for itself."""

from mutants.mutant import Mutant

P1 = "test_p1_with_one_batchnorm_gradients_and_weights_are_those_of_one_process[2]"
P2 = "test_p2_with_a_batchnorm_of_each_process_all_still_agree[some]"
FUNCTIONS = "test_the_program_for_several_processes_gathers_averages_and_agrees"

MUTANTS = [
    Mutant(
        "a gathered row has the gradient of its own process alone",
        "distributed/tensors.py",
        "        _reduce_scatter(own, grad)\n",
        "        own.copy_(grad[rows(len(grad))])\n",
        FUNCTIONS,
    ),
    Mutant(
        "views gathered process by process",
        "distributed/tensors.py",
        "every.transpose(0, 1).flatten(0, 1), rank() * n",
        "every.flatten(0, 1), rank() * n",
        FUNCTIONS,
    ),
    Mutant("anchors of every process are the first images", "distributed/tensors.py", "flatten(0, 1), rank() * n", "flatten(0, 1), 0", P1),
    Mutant("rows left over are lost", "distributed/tensors.py", "x.new_zeros(max(each)", "x.new_zeros(min(each)", FUNCTIONS),
    Mutant("running statistics of each process", "distributed/tensors.py", "torch._foreach_copy_(found, parts)", "pass", FUNCTIONS),
    Mutant("running statistics never averaged", "train.py", "            distributed.average_running_statistics(method)\n", "", P2),
    Mutant(
        "every process draws the numbers of the first images", "train.py", "own.stop - own.start, own.start)", "own.stop - own.start)", P1
    ),
    Mutant(
        "the logged loss is that of the first process",
        "train.py",
        "distributed.mean(torch.stack([row[name] for row in rows]))",
        "torch.stack([row[name] for row in rows])",
        P1,
    ),
    Mutant("gradients are not averaged", "build.py", "return distributed.data_parallel(method)", "return method", P1),
    Mutant(
        "the variance of all processes without that of their means",
        "models/batchnorm.py",
        "variances.mean(0) + means.var(0, correction=0)",
        "variances.mean(0)",
        P1,
    ),
    Mutant(
        "synchronised statistics without gradient",
        "models/batchnorm.py",
        "distributed.gather(own[None])",
        "distributed.gather(own[None].detach())",
        P1,
    ),
    Mutant("sync_bn ignored", "build.py", 'if cfg.get("sync_bn") and', "if False and", P1),
    Mutant(
        "each process has all sub-batches", "methods/moco.py", "split_batchnorm(module, splits)", "split_batchnorm(module, bn_splits)", P1
    ),
    Mutant("keys stay in their process", "models/momentum.py", "n, splits = len(x), max(splits, distributed.size())", "n = len(x)", P2),
    Mutant(
        "the answer of one process",
        "distributed/stop.py",
        "        answer = self._answer() or [0] * len(wishes)\n",
        "        self._answer()\n        answer = list(wishes)\n",
        FUNCTIONS,
    ),
    Mutant("the others print, too", "distributed/processes.py", "        if number:\n", "        if False:\n", FUNCTIONS),
    Mutant(
        "the first process alone has the others' group",
        "distributed/processes.py",
        "            with alone():\n                answer = True, work()",
        "            if True:\n                answer = True, work()",
        FUNCTIONS,
    ),
    Mutant(
        "an error of the first process stays there",
        "distributed/processes.py",
        "    if not succeeded:\n",
        "    if not succeeded and rank() == 0:\n",
        FUNCTIONS,
    ),
    Mutant(
        "an error of one process stays there",
        "distributed/processes.py",
        "        raise ValueError(failed[0])\n",
        "        pass\n",
        FUNCTIONS,
    ),
    Mutant("all processes decode at once", "distributed/processes.py", "if (_group.local_rank == 0) == here:", "if here:", FUNCTIONS),
    Mutant(
        "a part of a sequence starts at a whole block",
        "rng.py",
        "random_raw(skipped + count)[skipped:]",
        "random_raw(count)",
        "test_a_part_of_a_random_sequence_is_that_part_of_the_whole",
    ),
]
