"""Times `esvit bench` and its peers side by side, alternating, in one run.

    speed.py train-step [--arch swin_tiny] [--objective esvit] [--batch 4] [--precision bf16 f32] [--rounds 5]
    speed.py forward    [--arch swin_tiny] [--batch 8] [--precision bf16 f32] [--rounds 5]
    speed.py data       [--rounds 5]

`--arch` takes several names: those of `peers`, where PyTorch's side of each is.
Every contender is a process of its own, so that peak memories can be told apart; they run one
after the other, never at once, and take turns, so that a slow minute of the machine hits all.
Where a network has several forms in PyTorch, all are tried first, and the fastest one takes part.
`--isa avx2` holds both sides to an instruction set; ONNX Runtime cannot be held and is left out.
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

from peers import PEERS

ROOT = Path(__file__).resolve().parent.parent
# Those of `esvit bench` and of `peers.step`.
PROTOTYPES = 65_536
GLOBAL_SIZE, LOCAL_CROPS = 224, 8
# Images of a step, by its objective.
BATCH = {"esvit": 4, "simclr": 16, "mocov3": 16}
# Repetitions of each form before one is chosen.
TRIALS = 3
IN_PYTORCH = ("eager", "compile")
# What holds PyTorch's own kernels, MKL and oneDNN (which OpenVINO has too) to an instruction set.
HELD = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    },
}


# Options of `esvit bench` for an instruction set.
ISA: list[str] = []


def esvit() -> str:
    """The program under test."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return str(target / "release" / "esvit")


def bench(*arguments: str, iterations: int = 2) -> dict:
    """One run of `esvit bench`."""
    command = [esvit(), "bench", *arguments, *ISA, "--iterations", str(iterations), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


class Worker:
    """A peer in a process of its own that does one repetition whenever it is asked."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, __file__, "worker", *arguments]
        pipe = subprocess.PIPE
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True
        )
        self.answer()  # ready

    def answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"{self.process.args} ended early\n{self.errors.read()[-2000:]}")
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


def fastest_form(kind: str, arch: str, batch: int, precision: str, what: str) -> str:
    """The form of PyTorch's network that takes least time, each tried in a process of its own."""
    forms = PEERS[arch].forms
    if len(forms) == 1:
        return forms[0]
    times = {}
    for form in forms:
        worker = Worker(kind, arch, form, str(batch), precision, what)
        times[form] = min(worker.repeat()["seconds"] for _ in range(TRIALS))
        worker.close()
    tried = ", ".join(f"{form} {seconds:.3f} s" for form, seconds in times.items())
    print(f"  forms in PyTorch, {precision}: {tried}")
    return min(forms, key=lambda form: times[form])


def compare_steps(
    objective: str, arch: str, batch: int, precisions: list[str], rounds: int
) -> None:
    about = f", K {PROTOTYPES}" if objective == "esvit" else ""
    print(f"whole step, {objective}, {arch}, batch {batch}{about}, {rounds} rounds")
    forms = {p: fastest_form("train-step", arch, batch, p, objective) for p in precisions}
    workers = {
        p: Worker("train-step", arch, forms[p], str(batch), p, objective) for p in precisions
    }
    ours: dict[str, list[dict]] = {p: [] for p in precisions}
    theirs: dict[str, list[dict]] = {p: [] for p in precisions}
    of_network = ("--arch", arch, "--objective", objective, "--batch", str(batch))
    for _ in range(rounds):
        for p in precisions:
            ours[p].append(bench("train-step", *of_network, "--precision", p, iterations=3))
            theirs[p].append(workers[p].repeat())
    for worker in workers.values():
        worker.close()
    times = {p: median([r["median_s"] for r in ours[p]]) for p in precisions}
    peers = {p: median([r["seconds"] for r in theirs[p]]) for p in precisions}
    for p in precisions:
        memory = max(r["peak_rss_mb"] for r in ours[p])
        peer_memory = max(r["peak_mb"] for r in theirs[p])
        print(
            f"  {p}: esvit {times[p]:.3f} s, PyTorch ({forms[p]}) {peers[p]:.3f} s, ratio "
            f"{peers[p] / times[p]:.2f}; memory {memory:.0f} and {peer_memory:.0f} MB, "
            f"{memory / peer_memory:.0%}"
        )
    if {"bf16", "f32"} <= set(precisions):
        print(f"  esvit bf16 against PyTorch f32: ratio {peers['f32'] / times['bf16']:.2f}")


def compare_forward(
    arch: str, batch: int, precisions: list[str], rounds: int, compile_too: bool
) -> None:
    print(f"forward, {arch}, {GLOBAL_SIZE} px, batch {batch}, {rounds} rounds")
    peers = [("eager", "f32"), ("onnxruntime", "f32"), ("openvino", "f32")]
    peers += [("eager", "bf16"), ("openvino", "bf16")]
    if compile_too:
        peers += [("compile", "f32"), ("compile", "bf16")]
    peers = [peer for peer in peers if peer[1] in precisions and not (ISA and "onnx" in peer[0])]
    forms = {p: fastest_form("forward", arch, batch, p, "eager") for p in precisions}
    workers = {
        (runtime, p): Worker("forward", arch, forms[p], str(batch), p, runtime)
        for runtime, p in peers
    }
    times: dict = {peer: [] for peer in peers}
    ours: dict = {precision: [] for precision in precisions}
    for _ in range(rounds):
        for p in ours:
            options = ("--arch", arch, "--batch", str(batch), "--precision", p)
            ours[p].append(bench("forward", *options, iterations=5)["median_s"])
        for peer, worker in workers.items():
            repetitions = [worker.repeat()["seconds"] for _ in range(3)]
            times[peer].append(median(repetitions))
    for worker in workers.values():
        worker.close()
    for p, values in ours.items():
        print(f"  esvit {p}: {median(values):.3f} s")
        for (runtime, precision), peer_values in times.items():
            if precision == p:
                name = f"{runtime} ({forms[p]})" if runtime in IN_PYTORCH else runtime
                ratio = median(peer_values) / median(values)
                print(f"    {name} {precision}: {median(peer_values):.3f} s, ratio {ratio:.2f}")


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


def work(kind: str, arguments: list[str]) -> None:
    """The worker: PyTorch is loaded in this process alone."""
    if kind == "data":
        serve(data_path(*arguments))
        return
    arch, form, batch, precision, what = arguments
    if kind == "forward":
        from peers.inference import forward_pass

        serve(forward_pass(what, arch, form, int(batch), precision))
    elif what == "esvit":
        from peers.step import training_step

        serve(training_step(arch, form, int(batch), precision))
    else:
        from peers import contrast

        serve(contrast.training_step(what, arch, form, int(batch), precision))


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        work(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train-step", "forward", "data"])
    parser.add_argument("--arch", nargs="+", choices=PEERS, default=["swin_tiny"])
    parser.add_argument("--objective", choices=BATCH, default="esvit")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--precision", nargs="+", default=["bf16", "f32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--isa", choices=HELD, help="holds both sides to an instruction set")
    options = parser.parse_args()
    if options.isa:
        ISA.extend(["--isa", options.isa])
        os.environ.update(HELD[options.isa])
    if options.what == "data":
        compare_data(options.rounds)
        return
    for arch in options.arch:
        if options.what == "train-step":
            batch = options.batch or BATCH[options.objective]
            compare_steps(options.objective, arch, batch, options.precision, options.rounds)
        else:
            batch, precisions = options.batch or 8, options.precision
            compare_forward(arch, batch, precisions, options.rounds, options.compile)


if __name__ == "__main__":
    main()
