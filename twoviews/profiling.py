"""What a step costs: its floating-point operations, counted; the peak of the device, where its maker says one; a trace of some steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Dense TFLOP/s in bfloat16 with float32 sums, from the makers' data sheets; by a word of the name that CUDA gives a card.
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "A100-SXM4-40GB": 312, "A100-SXM4-80GB": 312, "L40S": 362, "L40": 181, "A40": 150}
PEAKS |= {"A10": 125, "A10G": 70, "L4": 121, "4090": 165, "3090": 71}
WAIT, WARM_UP, TRACED = 10, 3, 8  # steps: kernels are chosen, the tracer settles, the trace


def step_flops(method: nn.Module, views: Sequence[tuple[int, ...]], *, labels: bool) -> int | None:
    """Floating-point operations of a step, a multiply-add as two: matrix products and convolutions, forward and backward.

    Args:
        method: left as it is; a copy without values is run.
        views: the shape (N, C, H, W) of each view.
        labels: whether the method uses them.

    Returns:
        The number, or None for a method that cannot be run without values.
    """
    twin = copy.deepcopy(method).to("meta")
    inputs = [torch.empty(shape, device="meta", dtype=next(twin.parameters()).dtype) for shape in views]
    classes = torch.empty(views[0][0], device="meta", dtype=torch.int64) if labels else None
    try:
        with FlopCounterMode(display=False) as counter:
            loss: Tensor = twin(inputs, classes, torch.empty((), device="meta"))[0]
            loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError:  # somebody's method looks at values, or has an operation that knows no meta device
        return None
    return int(counter.get_total_flops())


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Of a known GPU in bf16, in operations a second; None otherwise: what a CPU reaches `twoviews bench` measures.

    Args:
        device: of the run.
        precision: of the run.
    """
    if device.type != "cuda" or precision != "bf16":
        return None
    words = torch.cuda.get_device_name(device).replace(" PCIe", "-PCIe").replace(" NVL", "-NVL").split()  # other cards of a like name
    return next((PEAKS[word] * 1e12 for word in words if word in PEAKS), None)


class Trace:
    """`with Trace(path) as trace:` writes what each operation of some steps took, if there is a path; `trace.step()` after every step.

    Args:
        path: of a file that https://ui.perfetto.dev opens; None: nothing is traced.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._profiler = None
        if path is not None:
            schedule = torch.profiler.schedule(wait=WAIT, warmup=WARM_UP, active=TRACED, repeat=1)
            self._profiler = torch.profiler.profile(schedule=schedule, on_trace_ready=self._write)

    def __enter__(self) -> Trace:
        if self._profiler is not None:
            self._profiler.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._profiler is not None:
            self._profiler.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
            if self.path is not None and not self.path.exists() and error is None:
                print(f"profile=true: nothing traced in so few steps: the first {WAIT + WARM_UP} are left out")

    def step(self) -> None:
        """One step was taken."""
        if self._profiler is not None:
            self._profiler.step()

    def _write(self, profiler: torch.profiler.profile) -> None:
        profiler.export_chrome_trace(str(self.path))
        on = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=on, row_limit=15, max_name_column_width=48))
        print(f"steps traced, {TRACED} at the most: {self.path} (https://ui.perfetto.dev opens it)")
