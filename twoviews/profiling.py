"""The cost of a step: number of floating-point operations, peak rate of the device, and a trace of some steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Dense TFLOP/s in bfloat16 with float32 accumulation, from data sheets. Keys are words of the device name that CUDA reports.
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "A100-SXM4-40GB": 312, "A100-SXM4-80GB": 312, "L40S": 362, "L40": 181, "A40": 150}
PEAKS |= {"A10": 125, "A10G": 70, "L4": 121, "4090": 165, "3090": 71}
WAIT, WARM_UP, TRACED = 10, 3, 8  # steps: not traced (kernels are being chosen), tracer warm-up, traced


def step_flops(method: nn.Module, views: Sequence[tuple[int, ...]], *, labels: bool) -> int | None:
    """Return the floating-point operations of a step: matrix products and convolutions, forward and backward, 2 per multiply-add.

    Args:
        method: not changed; a copy on the meta device runs.
        views: the shape (N, C, H, W) of each view.
        labels: whether the method uses them.

    Returns:
        The number, or None if the method does not run on the meta device.
    """
    twin = copy.deepcopy(method).to("meta")
    inputs = [torch.empty(shape, device="meta", dtype=next(twin.parameters()).dtype) for shape in views]
    classes = torch.empty(views[0][0], device="meta", dtype=torch.int64) if labels else None
    try:
        with FlopCounterMode(display=False) as counter:
            loss: Tensor = twin(inputs, classes, torch.empty((), device="meta"))[0]
            loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError:  # the method reads values, or uses an operation that the meta device lacks
        return None
    return int(counter.get_total_flops())


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak rate of a known GPU in bf16, in operations per second; None otherwise (`twoviews bench` measures CPUs).

    Args:
        device, precision: of the run.
    """
    if device.type != "cuda" or precision != "bf16":
        return None
    words = torch.cuda.get_device_name(device).replace(" PCIe", "-PCIe").replace(" NVL", "-NVL").split()  # other devices
    return next((PEAKS[word] * 1e12 for word in words if word in PEAKS), None)


class Trace:
    """`with Trace(path) as trace:` writes the times of all operations in some steps. Call `trace.step()` after every step.

    Args:
        path: of the file, which https://ui.perfetto.dev opens; None: trace nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._profiler = None
        if path is not None:
            schedule = torch.profiler.schedule(wait=WAIT, warmup=WARM_UP, active=TRACED, repeat=1)
            self._profiler = torch.profiler.profile(schedule=schedule, on_trace_ready=self._write, acc_events=True)

    def __enter__(self) -> Trace:
        if self._profiler is not None:
            self._profiler.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._profiler is not None:
            self._profiler.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
            if self.path is not None and not self.path.exists() and error is None:
                print(f"profile=true: nothing was traced: tracing starts after {WAIT + WARM_UP} steps, and the run had fewer")

    def step(self) -> None:
        """Tell the profiler that one step is done."""
        if self._profiler is not None:
            self._profiler.step()

    def _write(self, profiler: torch.profiler.profile) -> None:
        profiler.export_chrome_trace(str(self.path))
        column = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=column, row_limit=15, max_name_column_width=48))
        print(f"steps traced, {TRACED} at the most: {self.path} (https://ui.perfetto.dev opens it)")
