"""Schedules, parameter groups, clipping, optimisers and the moving average."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .network import CropOutputs, SelfSupervisedNetwork
from .objective import Centers, TeacherTemperature, Weights, loss


def cosine_schedule(
    base: float,
    final: float,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 0,
    start_warmup: float = 0.0,
) -> np.ndarray:
    """One value a step: linear warm-up (both ends included), then half a cosine.

    The cosine stops one step short of `final`, as the published runs did.
    """
    warmup = np.linspace(start_warmup, base, warmup_epochs * steps_per_epoch)
    steps = np.arange(epochs * steps_per_epoch - len(warmup))
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate([warmup, cosine])


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Biases and vectors are not decayed; tables and `weight_g` (2-D) are."""
    return not name.endswith(".bias") and parameter.ndim > 1


def parameter_groups(network: nn.Module) -> list[dict]:
    """Group 0 follows the weight-decay schedule; group 1 is never decayed."""
    trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    decayed = [p for n, p in trained if is_decayed(n, p)]
    others = [p for n, p in trained if not is_decayed(n, p)]
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose step for a matrix is scaled to the matrix's norm."""

    def __init__(
        self, params: list[dict], lr: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": 0.9}
        super().__init__(params, defaults | {"eta": 0.001})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_one(p, group)

    def _step_one(self, p: Tensor, group: dict) -> None:
        g = p.grad
        if p.ndim != 1:
            g = g + group["weight_decay"] * p
            p_norm, g_norm = p.norm(), g.norm()
            if p_norm > 0 and g_norm > 0:
                g = g * (group["eta"] * p_norm / g_norm)
        mu = self.state[p].get("mu", torch.zeros_like(p))
        self.state[p]["mu"] = group["momentum"] * mu + g
        p.sub_(group["lr"] * self.state[p]["mu"])


def make_optimizer(name: str, groups: list[dict]) -> torch.optim.Optimizer:
    """`adamw`, `sgd` or `lars`; rate and decay are set before every step."""
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    if name == "lars":
        return Lars(groups)
    raise ValueError(f"unknown optimizer `{name}`")


def clip_each(network: nn.Module, limit: float) -> None:
    """Scales every gradient tensor by itself; there is no norm over all parameters."""
    for p in network.parameters():
        if p.grad is not None:
            factor = limit / (p.grad.norm() + 1e-6)
            if factor < 1:
                p.grad.mul_(factor)


def drop_last_layer_gradients(network: nn.Module) -> None:
    """Leaves the prototypes untouched in this step, weight decay included."""
    for name, p in network.named_parameters():
        if "last_layer" in name:
            p.grad = None


@torch.no_grad()
def move_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moving average over every parameter, trained or not; never over buffers."""
    for t, s in zip(teacher.parameters(), student.parameters()):
        t.mul_(momentum).add_(s, alpha=1 - momentum)


@dataclass(frozen=True)
class Step:
    """The scheduled values of one step."""

    epoch: int
    lr: float
    weight_decay: float
    momentum: float


@dataclass
class StepRecord:
    """What a step computed before the parameters moved."""

    loss: float
    student: CropOutputs
    teacher: CropOutputs
    gradients: dict[str, Tensor]


class Trainer:
    """The state of a pre-training run."""

    def __init__(
        self,
        student: SelfSupervisedNetwork,
        teacher: SelfSupervisedNetwork,
        centers: Centers,
        settings: dict,
    ) -> None:
        self.student, self.teacher, self.centers = student, teacher, centers
        self.settings = settings
        self.temperature = TeacherTemperature(**settings["teacher_temp"])
        self.weights = Weights.default(settings["region_task"])
        groups = parameter_groups(student)
        self.optimizer = make_optimizer(settings["optimizer"], groups)

    def run(self, step: Step, crops: list[Tensor]) -> StepRecord:
        """One step: forward, backward, centres, clip, freeze, update, average."""
        self.student.train()
        self.teacher.train()
        with torch.no_grad():
            teacher_out = self.teacher(crops[:2])
        student_out = self.student(crops)
        value = loss(
            student_out,
            teacher_out,
            self.centers,
            self.temperature.at(step.epoch),
            self.settings["student_temp"],
            self.weights,
        )
        self.student.zero_grad(set_to_none=True)
        value.backward()
        self.centers.update(teacher_out)
        gradients = {
            name: p.grad.clone()
            for name, p in self.student.named_parameters()
            if p.grad is not None
        }
        self._update(step)
        return StepRecord(value.item(), student_out, teacher_out, gradients)

    def _update(self, step: Step) -> None:
        clip_each(self.student, self.settings["clip_grad_per_parameter"])
        if step.epoch < self.settings["freeze_last_layer_epochs"]:
            drop_last_layer_gradients(self.student)
        decayed, others = self.optimizer.param_groups
        decayed["lr"] = others["lr"] = step.lr
        decayed["weight_decay"] = step.weight_decay
        self.optimizer.step()
        move_teacher(self.teacher, self.student, step.momentum)
