"""A whole training step of SimCLR and of MoCo-v3 in PyTorch: heads, loss, AdamW and, for MoCo-v3, the
moving average.

Batch normalization of MoCo-v3 sees a view at a time, that of SimCLR both views together, as in the
published programs. Losses are those of `reference.objectives.contrast`, over PyTorch's own layers.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from reference.training import clip_each
from torch import Tensor, nn

from . import PEERS, build

SIZE = 224
LEARNING_RATE, WEIGHT_DECAY, MOMENTUM = 5e-4, 0.04, 0.99
CLIP = 3.0
Step = Callable[[], None]


def head(widths: list[int], last: nn.Module) -> nn.Sequential:
    """Linear layers without bias, each with batch normalization, ReLU between them; `last` is the last norm."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:]):
        linear = nn.Linear(inputs, outputs, bias=False)
        layers += [linear, nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-2], last)


class SimClr(nn.Module):
    """A backbone with a head of three layers."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        width = backbone.out_dim
        self.backbone = backbone
        self.head = head([width, width, width, 128], nn.BatchNorm1d(128))

    def loss(self, first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
        features = self.backbone(torch.cat([first, second]))[0]
        a, b = F.normalize(self.head(features).float()).chunk(2)
        own = torch.arange(len(a))
        # A view is not compared with itself.
        hide = torch.eye(len(a)) * 1e9
        across = a @ b.T / temperature
        sides = ((across, a), (across.T, b))
        logits = (torch.cat([to, rows @ rows.T / temperature - hide], 1) for to, rows in sides)
        return sum(F.cross_entropy(rows, own) for rows in logits)


class MocoV3(nn.Module):
    """A backbone with projector and, for queries, predictor."""

    def __init__(self, backbone: nn.Module, is_transformer: bool) -> None:
        super().__init__()
        self.backbone = backbone
        projector = [backbone.out_dim, 4096, 4096, 256]
        self.head = head(projector, nn.BatchNorm1d(256, affine=False))
        self.predictor = head([256, 4096, 256], nn.BatchNorm1d(256, affine=False))
        self.is_transformer = is_transformer
        if is_transformer:
            for parameter in backbone.network.patch_embed.parameters():
                parameter.requires_grad = False

    def projections(self, views: list[Tensor]) -> list[Tensor]:
        """Those of each view, which normalize for themselves."""
        if self.is_transformer:
            features = self.backbone(torch.cat(views))[0].chunk(len(views))
        else:
            features = [self.backbone(view)[0] for view in views]
        return [self.head(rows) for rows in features]

    def queries(self, views: list[Tensor]) -> list[Tensor]:
        return [F.normalize(self.predictor(p).float()) for p in self.projections(views)]

    @torch.no_grad()
    def keys(self, views: list[Tensor]) -> list[Tensor]:
        return [F.normalize(p.float()) for p in self.projections(views)]


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in network.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)


def simclr(arch: str, form: str, views: list[Tensor], precision: str) -> Step:
    network = SimClr(build(arch, form, PEERS[arch].drop_path))
    optimizer = optimizer_of(network)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = network.loss(*views)
        optimizer.zero_grad()
        loss.backward()
        clip_each(network, CLIP)
        optimizer.step()

    return step


def mocov3(arch: str, form: str, views: list[Tensor], precision: str) -> Step:
    temperature = 0.2
    is_transformer = arch.startswith("vit")
    rates = (PEERS[arch].drop_path, 0.0)
    student, teacher = (MocoV3(build(arch, form, rate), is_transformer) for rate in rates)
    teacher.load_state_dict(student.state_dict())
    for parameter in teacher.parameters():
        parameter.requires_grad = False
    optimizer = optimizer_of(student)
    # The predictor is the student's alone.
    averages, followed = (
        [*network.backbone.parameters(), *network.head.parameters()] for network in (teacher, student)
    )
    own = torch.arange(len(views[0]))

    def step() -> None:
        with torch.no_grad():
            torch._foreach_lerp_(averages, followed, 1 - MOMENTUM)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            keys, queries = teacher.keys(views), student.queries(views)
        pairs = zip(queries, reversed(keys))
        logits = (rows @ others.T / temperature for rows, others in pairs)
        loss = sum(2 * temperature * F.cross_entropy(rows, own) for rows in logits)
        optimizer.zero_grad()
        loss.backward()
        clip_each(student, CLIP)
        optimizer.step()

    return step


STEPS = {"simclr": simclr, "mocov3": mocov3}


def training_step(objective: str, arch: str, form: str, batch: int, precision: str) -> Step:
    """A step on random images."""
    torch.manual_seed(0)
    views = [torch.randn(batch, 3, SIZE, SIZE) for _ in range(2)]
    return STEPS[objective](arch, form, views, precision)
