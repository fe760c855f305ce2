"""Weights in and out, beside the programs that they come from and go to.

    cargo build --release --manifest-path conformance/tract/Cargo.toml
    python interchange.py --esvit target/release/esvit \
        --tract conformance/tract/target/release/esvit-tract-check WORK

In: full-size networks with random weights are saved by timm, torchvision, transformers and as
the official code and Microsoft's save theirs; `esvit verify` then must recognise each and give
their features. Out: what `esvit export` writes must load strictly in each program, equal to the
bit, and ONNX graphs of all architectures must run in ONNX Runtime and in tract. Prints one line a comparison; the exit status is
1 if one fails.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import safetensors.torch
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

import interchange_families as families
import vision_transformers
from reference.network import HeadConfig, SelfSupervisedNetwork
from reference.swin import LAYER_NORM_EPS, Swin, SwinConfig

SIZE = 224
FEATURE_TOLERANCE = 2e-4
ONNX_TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-2

Features = tuple[Tensor, Tensor]


def perturb(module: nn.Module, seed: int) -> nn.Module:
    """Random values for what starts at 0 or 1, so that a swapped tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim < 2:
                value.add_(0.1 * noise)
            elif name.endswith("relative_position_bias_table"):
                value.copy_(0.5 * noise)
        for name, value in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                value.add_(0.2 * torch.rand(value.shape, generator=generator))
    return module.eval()


@dataclass
class Given:
    """A file of weights of another program, and the features of its network."""

    name: str
    file: str
    save: Callable[[Path], None]
    features: Callable[[Tensor], Features]
    key: str | None = None
    family: str = "swin"


def timm_model(name: str, **settings: object) -> nn.Module:
    return perturb(timm.create_model(name, **settings), seed=1)


def timm_features(model: nn.Module, images: Tensor) -> Features:
    maps = model.forward_features(images)
    return maps.mean((1, 2)), maps.flatten(1, 2)


def torchvision_features(model: nn.Module, images: Tensor) -> Features:
    maps = model.norm(model.features(images))
    return maps.mean((1, 2)), maps.flatten(1, 2)


def transformers_features(model: nn.Module, images: Tensor) -> Features:
    out = model(images)
    return out.pooler_output, out.last_hidden_state


def swin_features(model: Swin, images: Tensor) -> Features:
    out = model.features(images)
    return out.view, out.region


def official_config(window: int = 7) -> SwinConfig:
    return SwinConfig(SIZE, 4, 96, [2, 2, 6, 2], [3, 6, 12, 24], window, 4.0)


def official_checkpoint(student: nn.Module, teacher: nn.Module) -> dict:
    """The dictionary that the official code saves."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    return {
        "student": {f"module.{k}": v for k, v in student.state_dict().items()},
        "teacher": {k: v.clone() for k, v in teacher.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "epoch": 300,
        "args": argparse.Namespace(arch="swin_tiny", use_dense_prediction=True, lr=5e-4),
        "dino_loss": {"center": torch.zeros(1, 1024), "center_grid": torch.zeros(1, 1024)},
    }


def given() -> Iterator[Given]:
    """Every kind of file that is read."""
    swin_t = timm_model("swin_tiny_patch4_window7_224")
    yield Given(
        "timm-safetensors-with-class-head",
        "checkpoint.safetensors",
        lambda path: safetensors.torch.save_file(swin_t.state_dict(), path),
        functools.partial(timm_features, swin_t),
    )
    large_windows = timm_model("swin_tiny_patch4_window7_224", window_size=14, num_classes=0)
    yield Given(
        "timm-pth-window-14",
        "checkpoint.pth",
        lambda path: torch.save(large_windows.state_dict(), path),
        functools.partial(timm_features, large_windows),
    )
    vision = perturb(torchvision.models.swin_t(), seed=2)
    yield Given(
        "torchvision-legacy-pth",
        "checkpoint.pth",
        lambda path: torch.save(
            vision.state_dict(), path, _use_new_zipfile_serialization=False
        ),
        functools.partial(torchvision_features, vision),
    )
    hugging = perturb(transformers.SwinModel(transformers.SwinConfig()), seed=3)
    yield Given(
        "transformers-folder",
        "model/model.safetensors",
        lambda path: hugging.save_pretrained(path.parent),
        functools.partial(transformers_features, hugging),
    )
    classifier = perturb(
        transformers.SwinForImageClassification(transformers.SwinConfig()), seed=4
    )
    yield Given(
        "transformers-state-in-memory",
        "checkpoint.pth",
        lambda path: torch.save(classifier.state_dict(), path),
        functools.partial(transformers_features, classifier.swin),
    )
    head = HeadConfig(prototypes=1024)
    student, teacher = (
        perturb(SelfSupervisedNetwork(official_config(), head, True), seed) for seed in (5, 6)
    )
    for key, network in (("student", student), ("teacher", teacher)):
        yield Given(
            f"esvit-{key}",
            "checkpoint.pth",
            lambda path: torch.save(official_checkpoint(student, teacher), path),
            functools.partial(swin_features, network),
            key=key,
        )
    wrapped = {
        f"module.{'' if k.startswith('head') else 'backbone.'}{k}": v
        for k, v in teacher.state_dict().items()
    }
    dino = {"teacher": wrapped}
    yield Given(
        "dino-wrapper",
        "checkpoint.pth",
        lambda path: torch.save(dino, path),
        functools.partial(swin_features, teacher),
    )
    older = timm_model("swin_tiny_patch4_window7_224", num_classes=1000)
    yield Given(
        "microsoft-pth",
        "checkpoint.pth",
        lambda path: torch.save({"model": microsoft_state(older), "epoch": 1}, path),
        functools.partial(timm_features, older),
    )
    for foreign in families.foreign():
        model = perturb(foreign.create(), seed=9)
        yield Given(
            foreign.name,
            foreign.file,
            functools.partial(foreign.save, model),
            functools.partial(foreign.features, model),
            family=foreign.family,
        )
    for name, file, model, prefix, save, key in vision_transformers.given():
        perturb(model, seed=9)
        features = functools.partial(vision_transformers.features, model, prefix)
        yield Given(name, file, save, features, key, "vit")


def microsoft_state(model: nn.Module) -> dict[str, Tensor]:
    """The names of Microsoft's own code: merging closes a stage, masks are stored."""
    state = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        state[".".join(parts).replace("head.fc.", "head.")] = value
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return state


def write_cases(folder: Path) -> None:
    """One case of kind `checkpoint` for every file that is read."""
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    for case in given():
        path = folder / case.name
        weights = path / case.file
        weights.parent.mkdir(parents=True, exist_ok=True)
        case.save(weights)
        with torch.inference_mode():
            view, region = case.features(images)
        tensors = {"input": images, "cls": view, "region": region}
        tensors = {name: value.contiguous().clone() for name, value in tensors.items()}
        safetensors.torch.save_file(tensors, path / "tensors.safetensors")
        settings = {"kind": "checkpoint", "family": case.family, "file": case.file, "key": case.key}
        (path / "case.json").write_text(json.dumps(settings))


class Failures:
    def __init__(self) -> None:
        self.count = 0

    def report(self, what: str, value: float, limit: float) -> None:
        good = value <= limit
        self.count += not good
        print(f"{'ok  ' if good else 'FAIL'} {what}: {value:.2e} (at most {limit:.0e})", flush=True)


def largest(found: Tensor | np.ndarray, expected: Tensor) -> float:
    return (torch.as_tensor(found).float() - expected).abs().max().item()


def check_exports(esvit: str, folder: Path, failures: Failures) -> None:
    """What is written, in the programs for which it is written."""
    network = perturb(SelfSupervisedNetwork(official_config(), HeadConfig(prototypes=256), True), 7)
    source = folder / "source.pth"
    torch.save({"teacher": network.state_dict()}, source)
    images = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        view, region = swin_features(network, images)
    norm = functools.partial(nn.LayerNorm, eps=LAYER_NORM_EPS)

    def export(target: str, name: str, *options: str) -> Path:
        out = folder / name
        command = [esvit, "export", "--checkpoint", str(source), "--format", target]
        subprocess.run([*command, "--out", str(out), "--overwrite", *options], check=True)
        return out

    def compare(what: str, features: Features) -> None:
        failures.report(f"{what}, view", largest(features[0], view), FEATURE_TOLERANCE)
        failures.report(f"{what}, region", largest(features[1], region), FEATURE_TOLERANCE)

    def same_bits(what: str, back: Path) -> None:
        """What was written and read again, against what it was written from."""
        difference = subprocess.run([esvit, "diff", str(source), str(back)], capture_output=True)
        failures.report(f"{what}, back again", difference.returncode, 0)

    with torch.inference_mode():
        name = "swin_tiny_patch4_window7_224"
        for file, load in (
            ("timm.safetensors", safetensors.torch.load_file),
            ("timm.pth", functools.partial(torch.load, weights_only=True)),
        ):
            out = export("timm", file)
            model = timm.create_model(name, num_classes=0, norm_layer=norm).eval()
            model.load_state_dict(load(out), strict=True)
            compare(file, timm_features(model, images))
            same_bits(file, out)
        out = export("timm", "timm")
        model = timm.create_model(f"local-dir:{out}", pretrained=True, norm_layer=norm).eval()
        compare("timm folder", timm_features(model, images))

        out = export("torchvision", "torchvision.safetensors")
        model = torchvision.models.swin_t(norm_layer=norm).eval()
        model.head = nn.Identity()
        model.load_state_dict(safetensors.torch.load_file(out), strict=True)
        compare("torchvision", torchvision_features(model, images))
        same_bits("torchvision", out)

        out = export("transformers", "transformers")
        model, report = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
        wrong = sum(len(report[kind]) for kind in ("missing_keys", "unexpected_keys"))
        failures.report("transformers, keys that do not fit", wrong, 0)
        compare("transformers", transformers_features(model.eval(), images))
        processor = transformers.AutoImageProcessor.from_pretrained(out)
        failures.report("transformers, crop", abs(processor.crop_size["height"] - SIZE), 0)
        same_bits("transformers", out / "model.safetensors")

        out = export("esvit", "esvit.pth")
        state = torch.load(out, weights_only=True)["teacher"]
        model = Swin(official_config()).eval()
        derived = {k for k in state if k.endswith("relative_position_index")}
        model.load_state_dict({k: v for k, v in state.items() if k not in derived}, strict=True)
        failures.report("esvit, buffers of the official code", abs(len(state) - 183), 0)
        compare("esvit", swin_features(model, images))
        same_bits("esvit", out)


def check_other_families(esvit: str, folder: Path, failures: Failures) -> None:
    """Networks of other families, exported for the program that they came from, and as graphs."""
    images = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    for foreign in families.foreign():
        model = perturb(foreign.create(), seed=9)
        with torch.inference_mode():
            view, region = foreign.features(model, images)
        source = folder / "cases" / foreign.name / foreign.file
        out = folder / ("back" if foreign.target == "transformers" else "back.safetensors")
        command = [esvit, "--quiet", "export", "--checkpoint", str(source), "--overwrite"]
        subprocess.run([*command, "--format", foreign.target, "--out", str(out)], check=True)
        with torch.inference_mode():
            found = foreign.features(foreign.load(out), images)
        for what, value, expected in zip(("view", "region"), found, (view, region), strict=True):
            failures.report(f"{foreign.name}, {what}", largest(value, expected), FEATURE_TOLERANCE)
        back = out / "model.safetensors" if out.is_dir() else out
        difference = subprocess.run([esvit, "diff", str(source), str(back)], capture_output=True)
        failures.report(f"{foreign.name}, back again", difference.returncode, 0)

        graph = folder / "family.onnx"
        subprocess.run([*command, "--format", "onnx", "--out", str(graph)], check=True)
        session = onnxruntime.InferenceSession(graph)
        found = session.run(["view", "region"], {"images": images.numpy()})
        for what, value, expected in zip(("view", "region"), found, (view, region), strict=True):
            scale = expected.abs().max().item()
            difference = largest(value, expected) / max(scale, 1.0)
            failures.report(f"{foreign.name}, ONNX, {what}", difference, ONNX_TOLERANCE)


def check_vision_transformers(esvit: str, folder: Path, failures: Failures) -> None:
    """Forms of vision transformers that both timm and `transformers` have."""
    images = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    for name, model, prefix, eps in vision_transformers.exported():
        perturb(model, seed=10)
        source = folder / "vision-transformer.safetensors"
        safetensors.torch.save_file(model.state_dict(), source)
        with torch.inference_mode():
            expected = vision_transformers.features(model, prefix, images)
        for target, load in vision_transformers.from_folders(folder / "vit", eps).items():
            command = [esvit, "export", "--checkpoint", str(source), "--format", target]
            command += ["--out", str(folder / "vit" / target), "--overwrite"]
            subprocess.run(command, check=True)
            with torch.inference_mode():
                found = vision_transformers.features(load().eval(), prefix, images)
            for what, value, right in zip(("view", "region"), found, expected, strict=True):
                what = f"{name} in {target}, {what}"
                failures.report(what, largest(value, right), FEATURE_TOLERANCE)


# Name, width, depths, heads: as the official configuration files have them.
ARCHITECTURES = (
    ("tiny", 96, (2, 2, 6, 2), (3, 6, 12, 24)),
    ("small", 96, (2, 2, 18, 2), (3, 6, 12, 24)),
    ("base", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
    ("large", 192, (2, 2, 18, 2), (6, 12, 24, 48)),
)


def check_graphs(esvit: str, folder: Path, tract: str | None, failures: Failures) -> None:
    """ONNX graphs of every backbone in ONNX Runtime and, where it is at hand, in tract."""
    for name, width, depths, heads in ARCHITECTURES:
        for window in (7, 14):
            config = SwinConfig(SIZE, 4, width, depths, heads, window, 4.0)
            check_graph(esvit, folder, tract, f"{name} W{window}", config, failures)


def check_graph(
    esvit: str, folder: Path, tract: str | None, name: str, config: SwinConfig, failures: Failures
) -> None:
    network = perturb(Swin(config), seed=8)
    images = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        view, region = swin_features(network, images)
    source, graph, features = (folder / f"graph.{end}" for end in ("pth", "onnx", "safetensors"))
    torch.save(network.state_dict(), source)
    tensors = {"input": images, "cls": view, "region": region}
    safetensors.torch.save_file(
        {key: value.contiguous().clone() for key, value in tensors.items()}, features
    )
    for precision, tolerance in (("f32", ONNX_TOLERANCE), ("f16", HALF_TOLERANCE)):
        command = [esvit, "--quiet", "export", "--checkpoint", str(source), "--format", "onnx"]
        command += ["--out", str(graph), "--overwrite", "--precision", precision]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        session = onnxruntime.InferenceSession(graph)
        for batch in (1, 5):
            found = session.run(["view", "region"], {"images": images[:batch].numpy()})
            for what, value, expected in zip(
                ("view", "region"), found, (view, region), strict=True
            ):
                difference = largest(value, expected[:batch])
                what = f"{name}, ONNX {precision}, batch {batch}, {what}"
                failures.report(what, difference, tolerance)
        if tract is not None:
            command = [tract, str(graph), str(features), str(tolerance)]
            failures.report(f"{name}, tract {precision}", subprocess.run(command).returncode, 0)


# Runs a command and prints its exit status and its peak of memory in kB.
MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def check_large_checkpoint(esvit: str, folder: Path, failures: Failures) -> None:
    """A Swin-B W14 with both networks and heads opens at once, in the memory of its backbone."""
    config = SwinConfig(SIZE, 4, 128, (2, 2, 18, 2), (4, 8, 16, 32), 14, 4.0)
    network = SelfSupervisedNetwork(config, HeadConfig(prototypes=65536), True)
    path = folder / "large.pth"
    torch.save(official_checkpoint(network, network), path)
    backbone = sum(value.nbytes for name, value in network.named_parameters() if "head" not in name)
    started = time.perf_counter()
    # A child's peak counts that of its parent before it became itself: a small one stands between.
    command = [sys.executable, "-c", MEASURE, esvit, "info", str(path)]
    measured = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    status, kilobytes = (int(word) for word in measured.split())
    seconds = time.perf_counter() - started
    print(f"{path.stat().st_size / 1e6:.0f} MB, of which the backbone {backbone / 1e6:.0f} MB")
    failures.report("large checkpoint, exit status", status, 0)
    failures.report("large checkpoint, seconds", seconds, 3.0)
    failures.report("large checkpoint, memory by backbone", kilobytes * 1024 / backbone, 1.3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for the files")
    parser.add_argument("--esvit", required=True, help="the program")
    parser.add_argument("--tract", help="the program of conformance/tract, to run graphs in it too")
    arguments = parser.parse_args()
    cases = arguments.work / "cases"
    write_cases(cases)
    read = subprocess.run([arguments.esvit, "verify", "--strict", str(cases)])
    failures = Failures()
    check_exports(arguments.esvit, arguments.work, failures)
    check_other_families(arguments.esvit, arguments.work, failures)
    check_vision_transformers(arguments.esvit, arguments.work, failures)
    check_large_checkpoint(arguments.esvit, arguments.work, failures)
    check_graphs(arguments.esvit, arguments.work, arguments.tract, failures)
    print(f"{failures.count} comparisons of exports failed")
    return int(failures.count > 0 or read.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
