"""Makes the project's numeric cases from the PyTorch reference.

    python make_cases.py OUT

Networks are small, seeded and perturbed, so that biases, norms and tables that start at
0 or 1 are tested as well. A case whose answer could turn on rounding (two region tokens
or two neighbours that are almost equally similar) is refused here. Equal
versions of the libraries on one kind of processor give equal files.
"""

import argparse
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models.swin_transformer import SwinTransformer
from torch import Generator, Tensor, nn

from make_cases_families import family_cases
from make_cases_heads import head_cases
from make_cases_objectives import objective_cases
from reference.augment import apply
from reference.cases import (
    Case,
    make_network,
    one_thread,
    outputs_by_name,
    run_objective,
    student_tokens,
)
from reference.evaluation import correspondence, knn_accuracy, knn_scores
from reference.hashing import hashed
from reference.network import CropOutputs
from reference.objective import (
    Centers,
    TeacherTemperature,
    mixup_target,
    split_regions,
)
from reference.seeded import normal, perturb, shrink, state
from reference.swin import LAYER_NORM_EPS, Swin, SwinConfig
from reference.training import Step, Trainer, cosine_schedule

# Smallest gap allowed between the best and the second-best match of a region token.
# AdamW magnifies rounding, and the gap must hold after several of its steps.
MATCH_MARGIN = 2e-4

TEMPERATURE = {"warmup": 0.04, "final": 0.07, "warmup_epochs": 3, "epochs": 10}


# Shrunk, they leave so small a residual stream that the eps of every LayerNorm shows.
FAINT = r".*(attn\.proj|mlp\.fc2|reduction|patch_embed\.(proj|norm))\.\w+"


# Backbone ----------------------------------------------------------------------------


def swin_config(**changes: Any) -> dict:
    """A two-stage backbone with one shifted block; `changes` replace entries."""
    config = {
        "img_size": 56,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [1, 2],
        "window_size": 7,
        "mlp_ratio": 2.0,
    }
    return config | changes


def three_stages(window: int) -> dict:
    """Design resolutions 28, 14 and 7, as the last stages of a full-size network."""
    stages = {"depths": [2, 2, 1], "num_heads": [1, 2, 4], "patch_size": 2}
    return swin_config(window_size=window, **stages)


@torch.no_grad()
def backbone_case(
    seed: int, config: dict, shapes: list[list[int]], faint: bool = False
) -> Case:
    """Features of a random backbone for inputs `[batch, height, width]`."""
    generator = Generator().manual_seed(seed)
    network = Swin(SwinConfig.from_json(config)).eval()
    perturb(network, generator)
    if faint:
        shrink(network, [FAINT], 0.01)
    settings = {
        "kind": "backbone",
        "family": "swin",
        "config": config,
        "n_last_blocks": 4,
        "inputs": len(shapes),
    }
    case = Case(settings, state(network, "param"))
    for i, (batch, height, width) in enumerate(shapes):
        images = normal(generator, batch, 3, height, width)
        out = network.features(images)
        case.tensors |= {
            f"input.{i}": images,
            f"cls.{i}": out.view,
            f"region.{i}": out.region,
            f"last_blocks.{i}": out.last_blocks(4),
            f"last_attention.{i}": out.last_attention,
        }
    return case


@torch.no_grad()
def timm_case(seed: int) -> Case:
    """A case whose features come from timm's Swin with the same weights.

    The input needs no padding, where timm would agree in any case; the rest of the two
    implementations was written apart.
    """
    config = swin_config(num_heads=[2, 4])
    case = backbone_case(seed, config, [[1, 56, 56]])
    other = timm_swin(config)
    # timm keeps derived buffers; every parameter must have been given.
    loaded = other.load_state_dict(timm_names(case.with_prefix("param.")), strict=False)
    given = {name for name, _ in other.named_parameters()}
    if loaded.unexpected_keys or given & set(loaded.missing_keys):
        raise ValueError(f"timm names differ: {loaded}")
    region = other.eval().forward_features(case.tensors["input.0"]).flatten(1, 2)
    error = (region - case.tensors["region.0"]).abs().max().item()
    if error > 2e-5:
        raise ValueError(f"timm and the reference differ by {error}")
    case.tensors |= {"region.0": region, "cls.0": region.mean(1)}
    case.settings["features_from"] = "timm.models.swin_transformer.SwinTransformer"
    return case


def timm_swin(config: dict) -> SwinTransformer:
    """timm's backbone with the eps that EsViT uses."""
    renamed = dict(config, depths=tuple(config["depths"]))
    return SwinTransformer(
        **renamed,
        num_classes=0,
        drop_path_rate=0.0,
        norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS),
    )


def timm_names(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Patch merging closes a stage in official names and opens the next one in timm."""

    def rename(name: str) -> str:
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) + 1)
        return ".".join(parts)

    return {rename(name): tensor for name, tensor in params.items()}


# Objective ---------------------------------------------------------------------------


def check_margin(student: CropOutputs, teacher: CropOutputs, batch: int) -> None:
    """Refuses matches that rounding could turn."""
    if student.region_features is None or teacher.region_features is None:
        return
    s_crops = split_regions(student.region_features, student.tokens_per_crop, batch)
    t_crops = split_regions(teacher.region_features, teacher.tokens_per_crop, batch)
    for t, t_crop in enumerate(t_crops):
        for s, s_crop in enumerate(s_crops):
            if s == t:
                continue
            left, right = F.normalize(s_crop, dim=-1), F.normalize(t_crop, dim=-1)
            best = (left @ right.transpose(1, 2)).topk(2, dim=-1).values
            if (best[..., 0] - best[..., 1]).min() < MATCH_MARGIN:
                raise ValueError("two teacher tokens are almost equally similar")


def objective_case(seed: int, *, batch: int = 3, **changes: Any) -> Case:
    """Random logits and features; `changes` replace or add settings."""
    settings = {
        "kind": "objective",
        "region_task": True,
        "batch": batch,
        "prototypes": 20,
        "feature_dim": 12,
        "teacher_regions": 9,
        "local_regions": 4,
        "local_crops": 3,
        "epoch": 1,
        "teacher_temp": TEMPERATURE,
        "student_temp": 0.1,
        "mixup": False,
    } | changes
    if "student_regions" in settings:
        del settings["local_regions"]
    generator = Generator().manual_seed(seed)
    case = Case(settings, objective_inputs(settings, generator))
    result = run_objective(case)
    settings["loss"] = result.loss
    case.tensors |= result.tensors
    return case


def objective_inputs(settings: dict, generator: Generator) -> dict[str, Tensor]:
    """The given tensors of an `objective` case."""
    tokens, batch = student_tokens(settings), settings["batch"]
    k, c = settings["prototypes"], settings["feature_dim"]
    given = {
        "student_view": normal(generator, len(tokens) * batch, k),
        "teacher_view": normal(generator, 2 * batch, k),
        "center": 0.3 * normal(generator, 1, k),
    }
    if settings["region_task"]:
        s_rows = sum(tokens) * batch
        t_rows = 2 * settings["teacher_regions"] * batch
        given |= {
            "student_region": normal(generator, s_rows, k),
            "student_features": normal(generator, s_rows, c),
            "teacher_region": normal(generator, t_rows, k),
            "teacher_features": normal(generator, t_rows, c),
            "center_grid": 0.3 * normal(generator, 1, k),
        }
        student = CropOutputs(torch.empty(0), None, given["student_features"], tokens)
        t_tokens = [settings["teacher_regions"]] * 2
        teacher = CropOutputs(torch.empty(0), None, given["teacher_features"], t_tokens)
        check_margin(student, teacher, batch)
    if settings["mixup"]:
        # The last crop stays unmixed, as crops beyond the limit do.
        shares = torch.rand(len(tokens), generator=generator)
        shares[-1] = 1.0
        for crop, share in enumerate(shares.tolist()):
            given[f"mixup_target.{crop}"] = mixup_target(share, batch)
    return given


# Pre-training ------------------------------------------------------------------------


def pretrain_settings(optimizer: str, lr: float, **changes: Any) -> dict:
    """Three steps of a two-stage network; `changes` replace settings."""
    settings = {
        "kind": "pretrain",
        "family": "swin",
        # Small patches: the maps of larger crops from fewer pixels.
        "config": swin_config(img_size=16, patch_size=2, depths=[2, 1], window_size=4),
        "region_task": True,
        "prototypes": 24,
        "head": {"hidden_dim": 16, "bottleneck_dim": 8, "norm_last_layer": False},
        "views": {
            "global_crops": 2,
            "global_size": 16,
            "local_crops": 2,
            "local_size": 12,
            "batch": 2,
        },
        "student_temp": 0.1,
        "teacher_temp": TEMPERATURE,
        "center_momentum": 0.9,
        "optimizer": optimizer,
        "clip_grad_per_parameter": 0.5,
        "freeze_last_layer_epochs": 0,
    } | changes
    settings["steps"] = [
        {
            "epoch": i,
            "lr": lr * (1 - 0.1 * i),
            "weight_decay": 0.04 + 0.01 * i,
            "momentum": 0.9 + 0.01 * i,
        }
        for i in range(3)
    ]
    return settings


def make_views(views: dict, generator: Generator) -> list[Tensor]:
    """Random crops of one step."""
    sizes = [views["global_size"]] * views["global_crops"]
    sizes += [views["local_size"]] * views["local_crops"]
    return [normal(generator, views["batch"], 3, size, size) for size in sizes]


def pretrain_case(seed: int, settings: dict) -> Case:
    """Runs the steps; keeps what the first computed and where the last one led."""
    settings = deepcopy(settings)
    generator = Generator().manual_seed(seed)
    student, teacher = make_network(settings), make_network(settings)
    for network in (student, teacher):
        perturb(network, generator)
    teacher.requires_grad_(False)
    k = settings["prototypes"]
    grid = 0.1 * normal(generator, 1, k) if settings["region_task"] else None
    centers = Centers(0.1 * normal(generator, 1, k), grid, settings["center_momentum"])
    given = state(student, "student") | state(teacher, "teacher")
    case = Case(settings, given | center_tensors(centers, ""))
    trainer = Trainer(student, teacher, centers, settings)
    for i, values in enumerate(settings["steps"]):
        crops = make_views(settings["views"], generator)
        case.tensors |= {f"step.{i}.view.{v}": crop for v, crop in enumerate(crops)}
        record = trainer.run(Step(**values), crops)
        check_margin(record.student, record.teacher, settings["views"]["batch"])
        values["loss"] = record.loss
        if i == 0:
            case.tensors |= outputs_by_name("student", record.student)
            case.tensors |= outputs_by_name("teacher", record.teacher)
            case.tensors |= {f"grad.{n}": g for n, g in record.gradients.items()}
    case.tensors |= state(student, "student_after") | state(teacher, "teacher_after")
    case.tensors |= center_tensors(centers, "_after")
    return case


def center_tensors(centers: Centers, suffix: str) -> dict[str, Tensor]:
    """The centres under their names."""
    named = {"center": centers.view, "center_grid": centers.grid}
    return {f"{k}{suffix}": v.clone() for k, v in named.items() if v is not None}


def pretrain_cases() -> dict[str, Callable[[], Case]]:
    """Every optimiser once, BatchNorm in the heads, frozen prototypes."""
    frozen = {"hidden_dim": 16, "bottleneck_dim": 8, "norm_last_layer": True}
    # SGD, because the biases in front of BatchNorm have a gradient of pure rounding,
    # which AdamW would turn into whole steps.
    batch_norm = frozen | {"norm_last_layer": False, "use_bn": True}
    view_only = {"region_task": False, "head": frozen, "freeze_last_layer_epochs": 1}
    settings = {
        "pretrain-adamw-region": (41, pretrain_settings("adamw", 0.001)),
        "pretrain-adamw-view-frozen": (
            42,
            pretrain_settings("adamw", 0.001, **view_only),
        ),
        "pretrain-sgd-region": (41, pretrain_settings("sgd", 0.05)),
        "pretrain-lars-region": (44, pretrain_settings("lars", 2.0)),
        "pretrain-sgd-batchnorm": (
            43,
            pretrain_settings("sgd", 0.05, head=batch_norm),
        ),
    }
    return {name: partial(pretrain_case, *args) for name, args in settings.items()}


# Evaluation --------------------------------------------------------------------------


def knn_case(
    seed: int, classes: int, train: int, test: int, noise: float, ks: list[int]
) -> Case:
    """Noisy class centres; every class that fits is in the training set."""
    generator = Generator().manual_seed(seed)
    centers = normal(generator, classes, 8)
    labels = torch.arange(train + test) * 7 % classes
    features = centers[labels] + noise * normal(generator, train + test, 8)
    features = F.normalize(features, dim=1)
    tensors = {
        "train_features": features[:train].clone(),
        "train_labels": labels[:train].clone(),
        "test_features": features[train:].clone(),
        "test_labels": labels[train:].clone(),
    }
    results = {str(k): knn_result(tensors, k, classes) for k in ks}
    settings = {"kind": "knn", "temperature": 0.07, "num_classes": classes}
    return Case(settings | {"results": results}, tensors)


def knn_result(tensors: dict[str, Tensor], k: int, classes: int) -> dict:
    """Accuracies of one k, refused if f64 gives others."""
    accuracies = []
    for dtype in (torch.float32, torch.float64):
        scores = knn_scores(
            tensors["train_features"].to(dtype),
            tensors["train_labels"],
            tensors["test_features"].to(dtype),
            k,
            0.07,
            classes,
        )
        accuracies.append(knn_accuracy(scores, tensors["test_labels"]))
    if accuracies[0] != accuracies[1]:
        raise ValueError("the neighbours turn on rounding")
    got = accuracies[0]
    ranges = {"top1_range": got.top1_range, "top5_range": got.top5_range}
    return {"top1": got.top1, "top5": got.top5} | ranges


def correspondence_case(seed: int, grid: int, stride: int, noise: float) -> Case:
    """Random cells and their noisy mirror image."""
    generator = Generator().manual_seed(seed)
    first = normal(generator, grid, grid, 8)
    second = first.flip(1) + noise * normal(generator, grid, grid, 8)
    first, second = first.flatten(0, 1), second.flatten(0, 1)
    found = correspondence(first, second, grid, stride)
    exact = correspondence(first.double(), second.double(), grid, stride)
    if not torch.equal(found.best_match, exact.best_match) or (
        found.distance_error != exact.distance_error
    ):
        raise ValueError("the matches turn on rounding")
    settings = {
        "kind": "correspondence",
        "grid": grid,
        "stride": stride,
        "image_size": grid * stride,
        "pairs": 10,
        "second_view": "horizontal flip of the first",
        "accuracy": found.accuracy,
        "distance_error": found.distance_error,
    }
    tensors = {"features1": first, "features2": second}
    tensors |= {"best_match": found.best_match, "similarity": found.similarity}
    return Case(settings, tensors)


# Schedules and pixels ----------------------------------------------------------------


def schedule_case() -> Case:
    """Learning rate, weight decay, momentum, odd lengths, and teacher temperatures."""
    names = ("base", "final", "epochs", "steps_per_epoch", "warmup_epochs")
    rows = [
        (5e-4, 1e-6, 12, 7, 3),
        (0.04, 0.4, 12, 7, 0),
        (0.996, 1.0, 12, 7, 0),
        (2e-3, 1e-5, 5, 1, 1),
    ]
    schedules = [dict(zip(names, row), start_warmup=0.0) for row in rows]
    schedules.append(dict(schedules[0], start_warmup=1e-5))
    temperatures = [
        TEMPERATURE,
        {"warmup": 0.04, "final": 0.04, "warmup_epochs": 0, "epochs": 4},
        {"warmup": 0.04, "final": 0.07, "warmup_epochs": 1, "epochs": 4},
    ]
    tensors = {}
    for i, schedule in enumerate(schedules):
        tensors[f"values.{i}"] = torch.from_numpy(cosine_schedule(**schedule)).float()
    for i, settings in enumerate(temperatures):
        temperature = TeacherTemperature(**settings)
        values = [temperature.at(epoch) for epoch in range(settings["epochs"])]
        tensors[f"teacher_temperature.{i}"] = torch.tensor(values)
    settings = {"kind": "schedule", "schedules": schedules}
    return Case(settings | {"teacher_temperatures": temperatures}, tensors)


def test_picture(height: int, width: int, stream: int) -> np.ndarray:
    """A picture with slopes, edges, flat parts and noise; no two axes alike."""
    y, x, c = np.meshgrid(
        np.arange(height), np.arange(width), np.arange(3), indexing="ij"
    )
    picture = 40 + (x * (3 + c) + y * (5 - c)) % 180
    picture[height // 4 : height // 2, width // 3 : width // 2] = (230, 40, 90)
    picture[height // 2 :, : width // 4] = 128
    noise = (20 * hashed(stream, [height, width, 3]).numpy()).astype(int)
    noise[:, width // 2 :] = 0
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def augment_operations() -> list[dict]:
    """Every operation, at more than one strength where it has one."""

    def crop(box: tuple[int, int, int, int], size: int, interpolation: str) -> dict:
        names = ("top", "left", "height", "width")
        settings = {"size": size, "interpolation": interpolation, "antialias": True}
        return {"op": "resized_crop"} | dict(zip(names, box)) | settings

    def centre(shorter: int, size: int, interpolation: str = "bicubic") -> dict:
        settings = {"resize_shorter": shorter, "center_crop": size}
        return {"op": "eval_transform"} | settings | {"interpolation": interpolation}

    small = [
        crop((5, 3, 20, 17), 24, "bicubic"),
        centre(37, 32),
        {"op": "horizontal_flip"},
        {"op": "grayscale"},
        {"op": "solarize", "threshold": 128},
    ]
    for op, factors in {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.07, 0.0),
    }.items():
        small += [{"op": op, "factor": factor} for factor in factors]
    small += [{"op": "gaussian_blur", "radius": r} for r in (0.1, 0.7, 1.3, 2.0)]
    return [
        crop((4, 9, 50, 60), 24, "bicubic"),
        crop((30, 40, 11, 13), 32, "bicubic"),
        crop((0, 0, 60, 80), 40, "bicubic"),
        crop((4, 9, 50, 60), 24, "bilinear"),
        crop((30, 40, 11, 13), 32, "bilinear"),
        centre(48, 40),
        centre(48, 40, "bilinear"),
    ] + [operation | {"input": "small"} for operation in small]


def augment_case() -> Case:
    """Results of Pillow and torchvision on two small pictures."""
    images = {"image": test_picture(60, 80, 70), "small": test_picture(40, 28, 71)}
    operations = augment_operations()
    tensors = {name: torch.from_numpy(image) for name, image in images.items()}
    for i, operation in enumerate(operations):
        result = apply(images[operation.get("input", "image")], operation)
        tensors[f"out.{i}"] = torch.from_numpy(result.copy())
    settings = {"kind": "augment", "library": "Pillow + torchvision"}
    return Case(settings | {"operations": operations}, tensors)


# All of them -------------------------------------------------------------------------


def all_cases() -> dict[str, Callable[[], Case]]:
    """Makers of all cases by folder name; here and in modules beside are all seeds."""
    view = {"region_task": False}
    two_sizes = {"student_regions": [9, 9, 4, 4, 1]}
    globals_only = {"local_crops": 0, "student_regions": [9, 9]}
    unit_weights = {"weights": {"view": 1.0, "region": 1.0}}
    return {
        "backbone-swin-w7": lambda: backbone_case(
            11, three_stages(7), [[1, 56, 56], [2, 44, 44]], faint=True
        ),
        "backbone-swin-w14": lambda: backbone_case(
            12, three_stages(14), [[1, 56, 56], [2, 24, 24]]
        ),
        "backbone-swin-non-square": lambda: backbone_case(
            13, swin_config(), [[1, 56, 84], [1, 60, 44]]
        ),
        "backbone-swin-timm": lambda: timm_case(14),
        **family_cases(),
        **objective_cases(),
        **head_cases(),
        "objective-view": lambda: objective_case(21, **view),
        "objective-view-mixup": lambda: objective_case(22, batch=4, **view, mixup=True),
        "objective-view-region": lambda: objective_case(23),
        "objective-region-two-sizes": lambda: objective_case(27, **two_sizes),
        "objective-region-no-locals": lambda: objective_case(25, **globals_only),
        "objective-region-weights": lambda: objective_case(28, **unit_weights),
        **pretrain_cases(),
        "knn-few-classes": lambda: knn_case(51, 3, 60, 40, 1.5, [10, 20]),
        "knn-ten-classes": lambda: knn_case(52, 10, 200, 80, 1.2, [10, 20, 100, 200]),
        "knn-many-classes": lambda: knn_case(53, 1203, 1300, 96, 0.3, [10, 20, 100]),
        "knn-small-train": lambda: knn_case(54, 12, 30, 40, 1.0, [10, 20, 100, 200]),
        "correspondence-7x7": lambda: correspondence_case(61, 7, 32, 1.6),
        "correspondence-12x12": lambda: correspondence_case(62, 12, 8, 0.7),
        "schedule": schedule_case,
        "augment": augment_case,
    }


def made_with() -> dict[str, str]:
    """Versions that the numbers come from; the build of PyTorch does not matter."""
    modules = {"torch": torch, "torchvision": torchvision, "timm": timm, "pillow": PIL}
    return {name: m.__version__.split("+")[0] for name, m in modules.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write the case folders to")
    options = parser.parse_args()
    one_thread()
    for name, make in all_cases().items():
        try:
            case = make()
        except ValueError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        case.settings["made_with"] = made_with()
        case.write(options.out / name)
        size = (options.out / name / "tensors.safetensors").stat().st_size
        print(f"{name}: {size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
