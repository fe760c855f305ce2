"""A whole training step in PyTorch: teacher, student, both tasks, clipping, AdamW, moving average.

Heads and losses are those of `reference`. What PyTorch has in one pass over memory is used: AdamW
is its fused one, the average `lerp_`.
"""

from collections.abc import Callable

import torch
from reference.network import CropOutputs, HeadConfig, ProjectionHead
from reference.objective import Centers, Weights, loss
from reference.training import clip_each, parameter_groups
from torch import Tensor, nn

from . import PEERS, build

PROTOTYPES = 65_536
GLOBAL_SIZE, LOCAL_SIZE = 224, 96
GLOBAL_CROPS, LOCAL_CROPS = 2, 8
LEARNING_RATE, WEIGHT_DECAY, MOMENTUM = 5e-4, 0.04, 0.996
TEACHER_TEMP, STUDENT_TEMP = 0.04, 0.1
CLIP = 3.0


class Network(nn.Module):
    """A backbone with the two heads."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        head = HeadConfig(PROTOTYPES, norm_last_layer=False)
        self.head = ProjectionHead(backbone.out_dim, head)
        self.head_dense = ProjectionHead(backbone.out_dim, head)

    def forward(self, groups: list[tuple[Tensor, int]]) -> CropOutputs:
        """Runs each group: images of one size, and of how many crops they are."""
        views, regions, tokens = [], [], []
        for images, crops in groups:
            view, region = self.backbone(images)
            views.append(view)
            regions.append(region.flatten(0, 1))
            tokens += [region.shape[1]] * crops
        features = torch.cat(regions)
        logits = self.head(torch.cat(views)), self.head_dense(features)
        return CropOutputs(logits[0].float(), logits[1].float(), features.float(), tokens)


def networks(arch: str, form: str) -> tuple[Network, Network]:
    """Student and teacher with equal weights. Both are in training mode: batch normalization has
    the statistics of the batch in the teacher, too."""
    torch.manual_seed(0)
    student = Network(build(arch, form, PEERS[arch].drop_path))
    teacher = Network(build(arch, form, 0.0))
    teacher.load_state_dict(student.state_dict())
    for parameter in teacher.parameters():
        parameter.requires_grad = False
    return student, teacher


def optimizer_of(student: Network) -> torch.optim.Optimizer:
    """AdamW over the two groups of the published run."""
    groups = parameter_groups(student)
    groups[0]["weight_decay"] = WEIGHT_DECAY
    return torch.optim.AdamW(groups, LEARNING_RATE, betas=(0.9, 0.999), fused=True)


@torch.no_grad()
def move_teacher(teacher: Network, student: Network) -> None:
    for average, parameter in zip(teacher.parameters(), student.parameters()):
        average.lerp_(parameter, 1 - MOMENTUM)


def training_step(arch: str, form: str, batch: int, precision: str) -> Callable[[], None]:
    """A step on random images."""
    student, teacher = networks(arch, form)
    optimizer = optimizer_of(student)
    centers = Centers(torch.zeros(1, PROTOTYPES), torch.zeros(1, PROTOTYPES))
    large = torch.randn(GLOBAL_CROPS * batch, 3, GLOBAL_SIZE, GLOBAL_SIZE)
    small = torch.randn(LOCAL_CROPS * batch, 3, LOCAL_SIZE, LOCAL_SIZE)
    global_crops, local_crops = (large, GLOBAL_CROPS), (small, LOCAL_CROPS)
    weights = Weights.default(region_task=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            with torch.no_grad():
                targets = teacher([global_crops])
            predicted = student([global_crops, local_crops])
        value = loss(predicted, targets, centers, TEACHER_TEMP, STUDENT_TEMP, weights)
        centers.update(targets)
        optimizer.zero_grad()
        value.backward()
        clip_each(student, CLIP)
        optimizer.step()
        move_teacher(teacher, student)

    return step
