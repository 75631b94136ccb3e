"""How many kernels torch.compile makes of a training step for a GPU. There is no GPU: a step is traced on the CPU, its graphs are moved to
a device that only has the properties of an H100, and Inductor writes their code, which nothing runs.

A jump means that a fusion was lost, or that a loop over layers or sub-batches is unrolled.
"""

from __future__ import annotations

import contextlib
import re
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch._inductor.scheduler
import torch.utils._triton
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import compile_fx
from torch._inductor import config as inductor
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from twoviews import build, config
from twoviews.methods import METHODS, arguments
from twoviews.models.resnet import build_backbone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]
H100 = SimpleNamespace(
    **{"major": 9, "minor": 0, "multi_processor_count": 132, "warp_size": 32, "max_threads_per_multi_processor": 2048},
    **{"regs_per_multiprocessor": 65_536, "max_threads_per_block": 1024, "total_memory": 80 << 30, "name": "NVIDIA H100"},
    **{"shared_memory_per_block": 49_152, "shared_memory_per_block_optin": 232_448, "L2_cache_size": 50 << 20, "gcnArchName": ""},
)


class Written(Exception):
    """The code is complete."""


def graphs(method: torch.nn.Module, views: list[Tensor]) -> list[tuple[torch.fx.GraphModule, list[Any]]]:
    """Return the forward and the backward graph of a step with bfloat16 autocast, and their inputs. Nothing is computed."""
    found: list[tuple[torch.fx.GraphModule, list[Any]]] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        found.append((graph, list(inputs)))
        (results,) = next(node for node in graph.graph.nodes if node.op == "output").args
        values = [node.meta["val"] if isinstance(node, torch.fx.Node) else node for node in results]

        def empty(*_: Any) -> list[Any]:
            return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) if isinstance(x, Tensor) else x for x in values]

        return make_boxed_func(empty)

    partition = min_cut_rematerialization_partition
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, partition_fn=partition, decompositions=select_decomp_table())
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = torch.compile(method, backend=backend, dynamic=False, fullgraph=True)(views, None, torch.zeros(()))
    loss.backward()
    return found


def code_for_a_gpu(graph: torch.fx.GraphModule, inputs: list[Any]) -> str:
    """Return the code that Inductor writes for a graph on an H100."""
    for node in graph.graph.nodes:
        node.meta = {}
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda:0")}
    graph.recompile()
    written: list[str] = []

    def keep(lowering: GraphLowering) -> None:
        written.append(lowering.codegen()[0].value)
        raise Written

    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (torch.cuda, "get_device_properties", lambda *_: H100),
            (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
            (torch.cuda, "get_device_name", lambda *_: H100.name),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "device_count", lambda: 1),
            (torch.cuda, "current_device", lambda: 0),
            *((torch.cuda, name, lambda *_: 0) for name in ("_lazy_init", "_exchange_device", "_maybe_exchange_device", "synchronize")),
            (torch.cuda, "get_rng_state", lambda *_: torch.zeros(1)),
            (torch.cuda, "set_rng_state", lambda *_: None),
            (CudaInterface, "get_compute_capability", staticmethod(lambda *_: 90)),
            (CudaInterface, "get_device_properties", staticmethod(lambda *_: H100)),
            (CudaInterface.Worker, "get_device_properties", staticmethod(lambda *_: H100)),
            (CudaInterface, "is_triton_capable", staticmethod(lambda *_: True)),
            (CudaInterface, "raise_if_triton_unavailable", staticmethod(lambda *_: None)),
            (torch._inductor.scheduler, "has_triton", lambda *_: True),
            (torch.utils._triton, "triton_hash_with_backend", lambda: "none"),
            (GraphLowering, "compile_to_module", keep),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(inductor.patch({"fx_graph_cache": False, "compile_threads": 1, **build.inductor_options()}))
        mode = FakeTensorMode()
        with mode:
            fake = [
                torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda:0") if isinstance(x, Tensor) else x for x in inputs
            ]
        FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*fake)
        stack.enter_context(V.set_fake_mode(mode))
        with contextlib.suppress(Exception):  # torch wraps `Written`
            compile_fx.compile_fx_inner(graph, fake)
    assert written, "Inductor wrote no code"
    return written[0]


@pytest.mark.parametrize(
    ("name", "batch", "forward", "backward"), [("simclr", 512, (109, 133), (100, 122)), ("moco", 256, (0, 340), (0, 210))]
)
def test_a_step_of_resnet18_has_as_few_kernels_as_before(
    name: str, batch: int, forward: tuple[int, int], backward: tuple[int, int]
) -> None:
    """SimCLR within 10 % of the 121 and 111 kernels of torch 2.11; MoCo's eight sub-batches in one kernel, not eight."""
    pytest.importorskip("triton", reason="comes with torch on Linux")
    cfg = config.load("pretrain", [f"recipe={name}"])
    net, embed_dim = build_backbone("resnet18", in_channels=3, image_size=32)
    given = {**cfg, "backbone": net, "embed_dim": embed_dim, "num_classes": 10, "num_images": 50_000, "batch_size": batch}
    given |= {"num_views": 2, "num_full_views": 2}
    method = METHODS[name](**{key: given[key] for key in arguments(METHODS[name])}).to(memory_format=torch.channels_last)
    views = [torch.empty(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    counts = [len(re.findall(r"triton_\w+\.run\(", code_for_a_gpu(*graph))) for graph in graphs(method, views)]
    print(f"{name}: {counts[0]} kernels forward, {counts[1]} backward")
    for count, (low, high) in zip(counts, (forward, backward), strict=True):
        assert low <= count <= high, counts
