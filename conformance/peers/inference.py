"""The view feature of a batch of images, in PyTorch, ONNX Runtime and OpenVINO."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from . import PEERS, build

SIZE = 224


class View(nn.Module):
    """A backbone without the region features."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)[0]


def forward_pass(
    runtime: str, arch: str, form: str, batch: int, precision: str
) -> Callable[[], object]:
    """A pass of random images in one of the runtimes; `form` is that of PyTorch alone."""
    images = torch.randn(batch, 3, SIZE, SIZE)
    if runtime in ("eager", "compile"):
        return in_pytorch(runtime, View(build(arch, form, 0.0)).eval(), images, precision)
    model = View(build(arch, PEERS[arch].forms[0], 0.0)).eval()
    with torch.no_grad():
        # What depends on the size of the images alone is made before the graph is recorded.
        model(images)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "graph.onnx")
        torch.onnx.export(model, (images,), path, input_names=["x"], dynamo=False)
        prepare = in_onnx_runtime if runtime == "onnxruntime" else in_openvino
        return prepare(path, images, precision)


def in_pytorch(
    runtime: str, model: nn.Module, images: Tensor, precision: str
) -> Callable[[], object]:
    call = torch.compile(model) if runtime == "compile" else model

    def run() -> None:
        with torch.inference_mode():
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                call(images)

    return run


def in_onnx_runtime(graph: str, images: Tensor, precision: str) -> Callable[[], object]:
    import onnxruntime

    if precision != "f32":
        raise ValueError("ONNX Runtime computes in f32 here")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options)
    values = {"x": images.numpy()}
    return lambda: session.run(None, values)


def in_openvino(graph: str, images: Tensor, precision: str) -> Callable[[], object]:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)
    values = images.numpy()
    return lambda: compiled([values])
