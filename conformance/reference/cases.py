"""Reading and writing of numeric cases: `case.json` beside `tensors.safetensors`."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .network import CropOutputs, HeadConfig, SelfSupervisedNetwork
from .objective import Centers, TeacherTemperature, Weights, loss
from .swin import SwinConfig


@dataclass
class Case:
    """One case: its settings and its tensors."""

    settings: dict
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> "Case":
        """Reads a case folder."""
        settings = json.loads((folder / "case.json").read_text())
        path = folder / "tensors.safetensors"
        return cls(settings, load_file(path) if path.exists() else {})

    def write(self, folder: Path) -> None:
        """Writes a case folder, replacing what a former run left in it."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.settings, indent=1)
        (folder / "case.json").write_text(text + "\n")
        tensors = {name: t.detach().contiguous() for name, t in self.tensors.items()}
        save_file(tensors, folder / "tensors.safetensors")

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, which is cut off, without derived buffers."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix) and not name.endswith("relative_position_index")
        }


def student_tokens(settings: dict) -> list[int]:
    """Region tokens of every student crop of an `objective` case."""
    if "student_regions" in settings:
        return settings["student_regions"]
    per_global, per_local = settings["teacher_regions"], settings["local_regions"]
    return [per_global] * 2 + [per_local] * settings["local_crops"]


def task_weights(settings: dict) -> Weights:
    """The weights a case names, or the defaults of its task."""
    if "weights" in settings:
        return Weights(**settings["weights"])
    return Weights.default(settings["region_task"])


@dataclass
class ObjectiveResult:
    """What an `objective` case must reproduce."""

    loss: float
    tensors: dict[str, Tensor]


def run_objective(case: Case) -> ObjectiveResult:
    """Loss, gradients with respect to the student's logits, and moved centres."""
    settings, given = case.settings, case.tensors
    tokens = student_tokens(settings)
    student = CropOutputs(
        given["student_view"].clone().requires_grad_(), None, None, tokens
    )
    teacher_tokens = [settings["teacher_regions"]] * 2
    teacher = CropOutputs(given["teacher_view"], None, None, teacher_tokens)
    centers = Centers(given["center"])
    leaves = {"view": student.view_logits}
    if settings["region_task"]:
        student.region_logits = given["student_region"].clone().requires_grad_()
        student.region_features = given["student_features"]
        teacher.region_logits = given["teacher_region"]
        teacher.region_features = given["teacher_features"]
        centers.grid = given["center_grid"]
        leaves["region"] = student.region_logits
    mixup = None
    if settings["mixup"]:
        mixup = [given[f"mixup_target.{crop}"] for crop in range(len(tokens))]
    value = loss(
        student,
        teacher,
        centers,
        TeacherTemperature(**settings["teacher_temp"]).at(settings["epoch"]),
        settings["student_temp"],
        task_weights(settings),
        mixup,
    )
    value.backward()
    centers.update(teacher)
    results = {f"grad_student_{k}": leaf.grad for k, leaf in leaves.items()}
    results["center_after"] = centers.view
    if centers.grid is not None:
        results["center_grid_after"] = centers.grid
    return ObjectiveResult(value.item(), results)


def make_network(settings: dict) -> SelfSupervisedNetwork:
    """A network of the sizes a `pretrain` case names."""
    head = HeadConfig(prototypes=settings["prototypes"], **settings["head"])
    config = SwinConfig.from_json(settings["config"])
    return SelfSupervisedNetwork(config, head, settings["region_task"])


def outputs_by_name(prefix: str, outputs: CropOutputs) -> dict[str, Tensor]:
    """The tensors of a forward pass under the names a `pretrain` case uses."""
    named = {
        f"out.{prefix}_view_logits": outputs.view_logits,
        f"out.{prefix}_region_logits": outputs.region_logits,
        f"out.{prefix}_region_features": outputs.region_features,
    }
    return {name: t.detach() for name, t in named.items() if t is not None}


def one_thread() -> None:
    """Fixes the order of summation as far as a user can."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
