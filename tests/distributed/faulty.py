"""`twoviews` with a fault in one process at one step, for torchrun: FAULT is `raise`, `kill` or `hang`, then rank and step."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from twoviews import cli, train


def main() -> int:
    fault, rank, step = os.environ["FAULT"].split()
    add = train.StepLog.add

    def failing(log: train.StepLog, number: int, *args: Any, **more: Any) -> None:
        if os.environ["RANK"] == rank and number == int(step):
            Path("fault").touch()
            if fault == "raise":
                raise ArithmeticError("a fault of this test")
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(10_000)
        add(log, number, *args, **more)

    train.StepLog.add = failing  # type: ignore[method-assign]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
