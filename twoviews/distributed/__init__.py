"""What the processes of one run share. torchrun starts them, one for each GPU; in a single process every function is the identity.

Each process has the whole data set and all weights, and computes its rows of every batch:

    with group(wait_seconds=600):            # joins the processes of torchrun
        forward = data_parallel(method)      # averages gradients over the processes
        keys = gather(z)                     # (N, D) of the whole batch, with gradients

Only the first process, of rank 0, prints and writes.
"""

from twoviews.distributed.processes import (
    ProcessLost,
    alone,
    first,
    first_on_each_machine,
    group,
    local_rank,
    local_size,
    on_first,
    program,
    rank,
    rows,
    size,
)
from twoviews.distributed.stop import Agreement, StopFlag
from twoviews.distributed.tensors import average_running_statistics, data_parallel, gather, gather_views, in_parts, mean

__all__ = [
    "Agreement",
    "ProcessLost",
    "StopFlag",
    "alone",
    "average_running_statistics",
    "data_parallel",
    "first",
    "first_on_each_machine",
    "gather",
    "gather_views",
    "group",
    "in_parts",
    "local_rank",
    "local_size",
    "mean",
    "on_first",
    "program",
    "rank",
    "rows",
    "size",
]
