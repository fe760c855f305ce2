"""Times `esvit bench` and its peers side by side, alternating, in one run.

    speed.py train-step [--batch 4] [--precision bf16 f32] [--rounds 5]
    speed.py forward    [--batch 8] [--precision bf16 f32] [--rounds 5]
    speed.py data       [--rounds 5]

Every contender is a process of its own, so that peak memories can be told apart; they run one
after the other, never at once, and take turns, so that a slow minute of the machine hits all.
Prints medians, ratios (peer / esvit: above 1 esvit is faster) and peak memories.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOTYPES = 65_536
GLOBAL_SIZE, LOCAL_SIZE, LOCAL_CROPS = 224, 96, 8


def esvit() -> str:
    """The program under test."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return str(target / "release" / "esvit")


def bench(*arguments: str, iterations: int = 2) -> dict:
    """One run of `esvit bench`."""
    command = [esvit(), "bench", *arguments, "--iterations", str(iterations), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


class Worker:
    """A peer in a process of its own that does one repetition whenever it is asked."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, __file__, "worker", *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        self.answer()  # ready

    def answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended early")
        return json.loads(line)

    def repeat(self) -> dict:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def serve(repetition) -> None:
    """The worker's side: warms up, then answers every line with a time and the peak memory."""
    repetition()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        repetition()
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mb": peak}), flush=True)


def training_step(batch: int, precision: str):
    """A whole step in PyTorch on timm's Swin-T: teacher, student, both tasks, AdamW, average."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import timm
    import torch
    from torch import nn

    from reference.network import CropOutputs, HeadConfig, ProjectionHead
    from reference.objective import Centers, Weights, loss
    from reference.training import clip_each, make_optimizer, move_teacher, parameter_groups

    class Network(nn.Module):
        """timm's backbone with the two heads."""

        def __init__(self, drop_path: float) -> None:
            super().__init__()
            self.backbone = timm.create_model(
                "swin_tiny_patch4_window7_224",
                num_classes=0,
                drop_path_rate=drop_path,
                strict_img_size=False,
            )
            head = HeadConfig(PROTOTYPES, norm_last_layer=False)
            self.head = ProjectionHead(768, head)
            self.head_dense = ProjectionHead(768, head)

        def forward(self, groups):
            views, regions, tokens = [], [], []
            for images, crops in groups:
                region = self.backbone.forward_features(images).flatten(1, 2)
                views.append(region.mean(1))
                regions.append(region.flatten(0, 1))
                tokens += [region.shape[1]] * crops
            features = torch.cat(regions)
            logits = self.head(torch.cat(views)), self.head_dense(features)
            return CropOutputs(logits[0].float(), logits[1].float(), features.float(), tokens)

    torch.manual_seed(0)
    student, teacher = Network(0.1), Network(0.0)
    teacher.load_state_dict(student.state_dict())
    for parameter in teacher.parameters():
        parameter.requires_grad = False
    optimizer = make_optimizer("adamw", parameter_groups(student))
    for group in optimizer.param_groups:
        group["lr"] = 5e-4
    optimizer.param_groups[0]["weight_decay"] = 0.04
    centers = Centers(torch.zeros(1, PROTOTYPES), torch.zeros(1, PROTOTYPES))
    large = torch.randn(2 * batch, 3, GLOBAL_SIZE, GLOBAL_SIZE)
    small = torch.randn(LOCAL_CROPS * batch, 3, LOCAL_SIZE, LOCAL_SIZE)

    def step() -> None:
        student.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            with torch.no_grad():
                teacher_out = teacher([(large, 2)])
            student_out = student([(large, 2), (small, LOCAL_CROPS)])
        value = loss(student_out, teacher_out, centers, 0.04, 0.1, Weights.default(True))
        centers.update(teacher_out)
        optimizer.zero_grad()
        value.backward()
        clip_each(student, 3.0)
        optimizer.step()
        move_teacher(teacher, student, 0.996)

    return step


def forward_pass(peer: str, precision: str, batch: int):
    """Swin-T's features in one of the peers."""
    import numpy as np
    import timm
    import torch

    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0).eval()
    images = torch.randn(batch, 3, GLOBAL_SIZE, GLOBAL_SIZE)
    if peer in ("eager", "compile"):
        call = torch.compile(model) if peer == "compile" else model

        def run() -> None:
            with torch.inference_mode():
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    call(images)

        return run
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "swin.onnx")
        torch.onnx.export(model, (images,), path, input_names=["x"], dynamo=False)
        if peer == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(path, options)
            values = {"x": images.numpy()}
            return lambda: session.run(None, values)
        import openvino

        core = openvino.Core()
        hint = {"f32": "f32", "bf16": "bf16"}[precision]
        settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        values = np.ascontiguousarray(images.numpy())
        return lambda: compiled([values])


def data_path(picture: str):
    """Decoding and ten views of the published augmentation with torchvision and Pillow."""
    import random

    import torch
    from PIL import Image, ImageFilter, ImageOps
    from torchvision import transforms as T

    torch.set_num_threads(1)
    bicubic = T.InterpolationMode.BICUBIC
    normalise = [T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    jitter = [
        T.RandomHorizontalFlip(),
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
        T.RandomGrayscale(0.2),
    ]

    def blur(probability: float):
        def apply(image):
            if random.random() > probability:
                return image
            return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

        return T.Lambda(apply)

    def solarize(image):
        return ImageOps.solarize(image) if random.random() < 0.2 else image

    def crop(size: int, scale: tuple[float, float]):
        return T.RandomResizedCrop(size, scale, interpolation=bicubic)

    first = T.Compose([crop(224, (0.4, 1.0)), *jitter, blur(1.0), *normalise])
    second = T.Compose(
        [crop(224, (0.4, 1.0)), *jitter, blur(0.1), T.Lambda(solarize), *normalise]
    )
    local = T.Compose([crop(96, (0.05, 0.4)), *jitter, blur(0.5), *normalise])

    def run() -> None:
        for _ in range(20):
            image = Image.open(picture).convert("RGB")
            [first(image), second(image), *(local(image) for _ in range(LOCAL_CROPS))]

    return run


def median(values: list[float]) -> float:
    return statistics.median(values)


def compare_steps(batch: int, precisions: list[str], rounds: int) -> None:
    workers = {p: Worker("train-step", str(batch), p) for p in precisions}
    ours: dict[str, list[dict]] = {p: [] for p in precisions}
    theirs: dict[str, list[dict]] = {p: [] for p in precisions}
    for _ in range(rounds):
        for p in precisions:
            ours[p].append(
                bench("train-step", "--batch", str(batch), "--precision", p, iterations=3)
            )
            theirs[p].append(workers[p].repeat())
    for worker in workers.values():
        worker.close()
    times = {p: median([r["median_s"] for r in ours[p]]) for p in precisions}
    peers = {p: median([r["seconds"] for r in theirs[p]]) for p in precisions}
    print(f"whole step, Swin-T, batch {batch}, K {PROTOTYPES}, {rounds} rounds")
    for p in precisions:
        memory = max(r["peak_rss_mb"] for r in ours[p])
        peer_memory = max(r["peak_mb"] for r in theirs[p])
        print(
            f"  {p}: esvit {times[p]:.3f} s, PyTorch {peers[p]:.3f} s, ratio "
            f"{peers[p] / times[p]:.2f}; memory {memory:.0f} and {peer_memory:.0f} MB, "
            f"{memory / peer_memory:.0%}"
        )
    if {"bf16", "f32"} <= set(precisions):
        print(f"  esvit bf16 against PyTorch f32: ratio {peers['f32'] / times['bf16']:.2f}")


def compare_forward(batch: int, precisions: list[str], rounds: int, compile_too: bool) -> None:
    peers = [("eager", "f32"), ("onnxruntime", "f32"), ("openvino", "f32")]
    peers += [("eager", "bf16"), ("openvino", "bf16")]
    if compile_too:
        peers += [("compile", "f32"), ("compile", "bf16")]
    peers = [peer for peer in peers if peer[1] in precisions]
    workers = {peer: Worker("forward", *peer, str(batch)) for peer in peers}
    times: dict = {peer: [] for peer in peers}
    ours: dict = {precision: [] for precision in precisions}
    for _ in range(rounds):
        for p in ours:
            report = bench("forward", "--batch", str(batch), "--precision", p, iterations=5)
            ours[p].append(report["median_s"])
        for peer, worker in workers.items():
            repetitions = [worker.repeat()["seconds"] for _ in range(3)]
            times[peer].append(median(repetitions))
    for worker in workers.values():
        worker.close()
    print(f"forward, Swin-T, 224 px, batch {batch}, {rounds} rounds")
    for p, values in ours.items():
        print(f"  esvit {p}: {median(values):.3f} s")
        for (peer, precision), peer_values in times.items():
            if precision == p:
                ratio = median(peer_values) / median(values)
                print(f"    {peer} {precision}: {median(peer_values):.3f} s, ratio {ratio:.2f}")


def compare_data(rounds: int) -> None:
    from PIL import Image

    source = ROOT / "crates" / "esvit-data" / "materials" / "paving001.jpg"
    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "picture.jpg")
        Image.open(source).resize((500, 375), Image.Resampling.BICUBIC).save(picture, quality=92)
        worker = Worker("data", picture)
        ours, theirs = [], []
        for _ in range(rounds):
            report = bench("data", "--image", picture, iterations=100)
            ours.append(report["total_ms"])
            theirs.append(worker.repeat()["seconds"] / 20 * 1e3)
        worker.close()
    ratio = median(theirs) / median(ours)
    print(
        f"a JPEG of 500 x 375 and ten views, one core: esvit {median(ours):.2f} ms, "
        f"torchvision {median(theirs):.2f} ms, ratio {ratio:.2f}"
    )


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        kind, *rest = sys.argv[2:]
        if kind == "train-step":
            serve(training_step(int(rest[0]), rest[1]))
        elif kind == "forward":
            serve(forward_pass(rest[0], rest[1], int(rest[2])))
        else:
            serve(data_path(rest[0]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train-step", "forward", "data"])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--precision", nargs="+", default=["bf16", "f32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    options = parser.parse_args()
    if options.what == "train-step":
        compare_steps(options.batch or 4, options.precision, options.rounds)
    elif options.what == "forward":
        compare_forward(options.batch or 8, options.precision, options.rounds, options.compile)
    else:
        compare_data(options.rounds)


if __name__ == "__main__":
    main()
