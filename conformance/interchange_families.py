"""Full-size networks of timm, torchvision and transformers other than Swin, for interchange.py."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

Features = tuple[Tensor, Tensor]


@dataclass
class Foreign:
    """A network of another program: where its weights go, and what its features are."""

    name: str
    family: str
    # What `esvit export --format` calls the program; None where it cannot write such networks.
    target: str | None
    # A file for a state dict, or a folder for `save_pretrained`.
    file: str
    create: Callable[[], nn.Module]
    features: Callable[[nn.Module, Tensor], Features]

    def save(self, model: nn.Module, path: Path) -> None:
        if self.file.endswith("model/model.safetensors"):
            model.save_pretrained(path.parent)
        elif self.file.endswith(".safetensors"):
            safetensors.torch.save_file(model.state_dict(), path)
        else:
            torch.save(model.state_dict(), path)

    def load(self, path: Path) -> nn.Module:
        """A network of the program with the weights in a file or folder, strictly."""
        if path.is_dir():
            model, report = transformers.AutoModel.from_pretrained(path, output_loading_info=True)
            wrong = [*report["missing_keys"], *report["unexpected_keys"]]
            # A pooler, which a backbone does not have.
            wrong = [key for key in wrong if not key.startswith("pooler.")]
            if wrong:
                raise RuntimeError(f"{self.name}: {wrong[:3]} do not fit")
            return model.eval()
        model = self.create().eval()
        model.load_state_dict(safetensors.torch.load_file(path), strict=True)
        return model


def tokens(prefix: int, classes: int = 1) -> Callable[[Tensor], Features]:
    """Features of normalized tokens: the mean of the first `classes`, and those after the prefix."""
    return lambda x: (x[:, :classes].mean(1), x[:, prefix:])


def maps(x: Tensor) -> Features:
    """Features of maps, channels first."""
    return x.mean((2, 3)), x.flatten(2).transpose(1, 2)


def of_timm(split: Callable[[Tensor], Features]) -> Callable[[nn.Module, Tensor], Features]:
    return lambda model, images: split(model.forward_features(images))


def of_transformers(split: Callable[[Tensor], Features]) -> Callable[[nn.Module, Tensor], Features]:
    return lambda model, images: split(model(images).last_hidden_state)


def torchvision_vit(model: nn.Module, images: Tensor) -> Features:
    patches = model._process_input(images)
    class_token = model.class_token.expand(len(images), -1, -1)
    return tokens(1)(model.encoder(torch.cat([class_token, patches], 1)))


def torchvision_resnet(model: nn.Module, images: Tensor) -> Features:
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = stage(x)
    return maps(x)


def without_head(model: nn.Module, name: str) -> nn.Module:
    setattr(model, name, nn.Identity())
    return model


def foreign() -> Iterator[Foreign]:
    """Every kind of network."""
    create = functools.partial(timm.create_model, num_classes=0)
    for name, split in (
        ("vit_small_patch16_224", tokens(1)),
        ("vit_base_patch8_224", tokens(1)),
        ("deit_tiny_distilled_patch16_224", tokens(2, classes=2)),
    ):
        make = functools.partial(create, name)
        yield Foreign(f"timm-{name}", "vit", "timm", "vit.safetensors", make, of_timm(split))
    make = functools.partial(create, "vit_small_patch14_reg4_dinov2", img_size=224)
    yield Foreign("timm-dinov2-reg4", "vit", "timm", "vit.safetensors", make, of_timm(tokens(5)))
    for layers in (18, 50):
        make = functools.partial(create, f"resnet{layers}")
        yield Foreign(f"timm-resnet{layers}", "resnet", "timm", "resnet.pth", make, of_timm(maps))

    make = lambda: without_head(torchvision.models.vit_b_16(), "heads")
    name = "torchvision-vit"
    yield Foreign(name, "vit", "torchvision", "vit.safetensors", make, torchvision_vit)
    make = lambda: without_head(torchvision.models.resnet50(), "fc")
    name = "torchvision-resnet50"
    yield Foreign(name, "resnet", "torchvision", "resnet.pth", make, torchvision_resnet)

    folder = "model/model.safetensors"
    small = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    make = lambda: transformers.ViTModel(transformers.ViTConfig(**small), add_pooling_layer=False)
    name = "transformers-vit"
    yield Foreign(name, "vit", "transformers", folder, make, of_transformers(tokens(1)))
    make = lambda: transformers.DeiTModel(transformers.DeiTConfig(**small), add_pooling_layer=False)
    name, split = "transformers-deit", tokens(2, classes=2)
    yield Foreign(name, "vit", "transformers", folder, make, of_transformers(split))
    make = lambda: transformers.ResNetModel(transformers.ResNetConfig())
    name = "transformers-resnet50"
    yield Foreign(name, "resnet", "transformers", folder, make, of_transformers(maps))
