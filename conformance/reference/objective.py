"""The self-distillation objective: both tasks, centres and mixup targets."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .network import CropOutputs

# The teacher sees only the two global crops.
TEACHER_CROPS = 2


@dataclass(frozen=True)
class TeacherTemperature:
    """Linear warm-up (both ends included), then constant; epochs count from 0."""

    warmup: float
    final: float
    warmup_epochs: int
    epochs: int

    def at(self, epoch: int) -> float:
        """The temperature of an epoch."""
        ramp = np.linspace(self.warmup, self.final, self.warmup_epochs)
        return float(ramp[epoch]) if epoch < self.warmup_epochs else self.final


@dataclass
class Centers:
    """Running means of the teacher's logits; `grid` belongs to the region task."""

    view: Tensor
    grid: Tensor | None = None
    momentum: float = 0.9

    def update(self, teacher: CropOutputs) -> None:
        """Moves the centres towards the batch means of the raw logits."""
        self.view = self._moved(self.view, teacher.view_logits)
        if self.grid is not None:
            assert teacher.region_logits is not None
            self.grid = self._moved(self.grid, teacher.region_logits)

    def _moved(self, center: Tensor, logits: Tensor) -> Tensor:
        mean = logits.detach().mean(0, keepdim=True)
        return center * self.momentum + mean * (1 - self.momentum)


@dataclass(frozen=True)
class Weights:
    """Factors of the two tasks inside each pair of crops."""

    view: float
    region: float

    @classmethod
    def default(cls, region_task: bool) -> "Weights":
        """Half and half with the region task; 1 for the view task alone."""
        return cls(0.5, 0.5) if region_task else cls(1.0, 0.0)


def match_targets(
    student_features: Tensor, teacher_features: Tensor, teacher_probs: Tensor
) -> Tensor:
    """For each student token, the teacher's distribution at the most similar token.

    Only indices leave this function, so no gradient passes through the similarity.
    """
    with torch.no_grad():
        student = F.normalize(student_features, dim=-1)
        teacher = F.normalize(teacher_features, dim=-1)
        best = (student @ teacher.transpose(1, 2)).argmax(-1)
        best = best[:, :, None].expand(-1, -1, teacher_probs.shape[-1])
        return teacher_probs.gather(1, best)


def view_term(probs: Tensor, log_probs: Tensor, mix: Tensor | None) -> Tensor:
    """Mean cross-entropy between a teacher crop and a student crop, `[B, K]` each.

    `mix[i, j]` is the share of image j in the student's mixed image i. Mixing logs of
    image j against the teacher of image i is the published form for mixed crops.
    Shares are symmetric (images are mixed in pairs), so the order of i and j is free.
    """
    if mix is None:
        return -(probs * log_probs).sum(-1).mean()
    return -(mix * (probs @ log_probs.T)).sum(-1).mean()


def split_regions(rows: Tensor, tokens: list[int], batch: int) -> list[Tensor]:
    """Crop-major rows to one `[B, tokens, width]` tensor a crop."""
    parts = rows.split([batch * n for n in tokens])
    return [part.view(batch, n, -1) for part, n in zip(parts, tokens)]


def loss(
    student: CropOutputs,
    teacher: CropOutputs,
    centers: Centers,
    teacher_temp: float,
    student_temp: float,
    weights: Weights,
    mixup: list[Tensor] | None = None,
) -> Tensor:
    """Mean over all (teacher crop, other student crop) pairs of the weighted tasks."""
    crops = len(student.tokens_per_crop)
    batch = student.view_logits.shape[0] // crops
    probs = ((teacher.view_logits.detach() - centers.view) / teacher_temp).softmax(-1)
    view_probs = probs.split(batch)
    view_logs = (student.view_logits / student_temp).log_softmax(-1).split(batch)
    region = RegionTask(student, teacher, centers, teacher_temp, student_temp, batch)

    terms = []
    for t in range(TEACHER_CROPS):
        for s in range(crops):
            if s == t:
                continue
            mix = mixup[s] if mixup else None
            term = weights.view * view_term(view_probs[t], view_logs[s], mix)
            if student.region_logits is not None:
                term = term + weights.region * region.term(t, s)
            terms.append(term)
    return torch.stack(terms).sum() / len(terms)


class RegionTask:
    """Region distributions and features, cut into crops."""

    def __init__(
        self,
        student: CropOutputs,
        teacher: CropOutputs,
        centers: Centers,
        teacher_temp: float,
        student_temp: float,
        batch: int,
    ) -> None:
        if student.region_logits is None:
            return
        assert student.region_features is not None and centers.grid is not None
        assert teacher.region_logits is not None
        assert teacher.region_features is not None
        raw = teacher.region_logits.detach() - centers.grid
        t_tokens = teacher.tokens_per_crop
        s_tokens = student.tokens_per_crop
        self.probs = split_regions((raw / teacher_temp).softmax(-1), t_tokens, batch)
        logs = (student.region_logits / student_temp).log_softmax(-1)
        self.logs = split_regions(logs, s_tokens, batch)
        self.t_features = split_regions(teacher.region_features, t_tokens, batch)
        self.s_features = split_regions(student.region_features, s_tokens, batch)

    def term(self, t: int, s: int) -> Tensor:
        """Cross-entropy of matched tokens, averaged over student tokens and images."""
        targets = match_targets(
            self.s_features[s], self.t_features[t], self.probs[t]
        ).detach()
        return -(targets * self.logs[s]).sum(-1).mean(-1).mean()


def mixup_target(lam: float, batch: int) -> Tensor:
    """Shares of each image when image i is mixed with image B-1-i."""
    identity = torch.eye(batch)
    return lam * identity + (1 - lam) * identity.flip(0)
