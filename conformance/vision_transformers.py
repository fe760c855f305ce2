"""Forms of vision transformers in timm and transformers, which `interchange.py` takes in and out."""

import functools
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import timm
import torch
import transformers
from torch import Tensor, nn

SIZE = 224
# Blocks of each network: enough for all names, in little time.
DEPTH = 2


def features(model: nn.Module, prefix: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """The class token and the patches after `prefix` tokens, normalized."""
    if isinstance(model, transformers.PreTrainedModel):
        tokens = model(images).last_hidden_state
    else:
        tokens = model.forward_features(images)
    return tokens[:, 0], tokens[:, prefix:]


def sine_cosine(side: int, width: int) -> Tensor:
    """MoCo v3's positions, `[1, 1 + side^2, width]`: none for the class token."""
    frequencies = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    places = torch.arange(side**2)
    rows, columns = places // side, places % side
    angles = [place[:, None] * frequencies for place in (rows, columns)]
    waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    return torch.cat([torch.zeros(1, width), torch.cat(waves, 1)])[None]


def stem(width: int) -> nn.Sequential:
    """MoCo v3's convolutions in place of the patch embedding's, with statistics of some batch."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs in (width // 8, width // 4, width // 2, width):
        norm = nn.BatchNorm2d(outputs)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), norm, nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.Conv2d(width, width, 1))


def moco(has_stem: bool) -> nn.Module:
    """MoCo v3's small network, with heads of 32 channels."""
    model = timm.create_model(
        "vit_small_patch16_224", depth=DEPTH, num_heads=12, num_classes=0, img_size=SIZE
    )
    model.pos_embed.data = sine_cosine(SIZE // 16, 384)
    if has_stem:
        model.patch_embed.proj = stem(384)
    return model


def moco_state(model: nn.Module) -> dict:
    """Both encoders, as MoCo v3's code saves them."""
    state = model.state_dict()
    networks = ("base_encoder", "momentum_encoder")
    named = {f"module.{network}.{k}": v for network in networks for k, v in state.items()}
    return {"state_dict": named | {"module.predictor.0.weight": torch.zeros(2, 2)}}


def dinov2_state(model: nn.Module, chunk: int) -> dict[str, Tensor]:
    """A network of timm's under the names of DINOv2's code, its blocks in chunks unless `chunk` is 0."""
    state = {"mask_token": torch.zeros(1, model.embed_dim)}
    for name, value in model.state_dict().items():
        name = name.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3.")
        if chunk > 0 and name.startswith("blocks."):
            index = int(name.split(".")[1])
            name = name.replace("blocks.", f"blocks.{index // chunk}.", 1)
        state[name] = value
    return state


def giant(**settings: object) -> nn.Module:
    name = "vit_giant_patch14_dinov2"
    return timm.create_model(name, depth=DEPTH, num_classes=0, img_size=SIZE, **settings)


def dinov3(name: str = "vit_small_patch16_dinov3") -> nn.Module:
    return timm.create_model(name, depth=DEPTH, num_classes=0)


def hugging_dinov2(registers: int) -> nn.Module:
    settings = {
        "hidden_size": 384,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 6,
        "image_size": SIZE,
        "patch_size": 14,
        "use_swiglu_ffn": True,
    }
    if registers == 0:
        return transformers.Dinov2Model(transformers.Dinov2Config(**settings))
    config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **settings)
    return transformers.Dinov2WithRegistersModel(config)


def hugging_dinov3() -> nn.Module:
    config = transformers.DINOv3ViTConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=DEPTH,
        num_attention_heads=6,
        num_register_tokens=4,
        patch_size=16,
        image_size=SIZE,
    )
    return transformers.DINOv3ViTModel(config)


def given() -> Iterator[tuple[str, str, nn.Module, int, object, str | None]]:
    """Name, file, network, tokens before its patches, what saves it at a path, and its key."""

    def tensors(state: dict[str, Tensor], path: Path) -> None:
        safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)

    def of_timm(model: nn.Module) -> object:
        return lambda path: tensors(model.state_dict(), path)

    def of_dinov2(model: nn.Module, chunk: int) -> object:
        return lambda path: torch.save({"teacher": dinov2_state(model, chunk)}, path)

    def of_moco(model: nn.Module) -> object:
        return lambda path: torch.save(moco_state(model), path)

    def of_hugging(model: nn.Module) -> object:
        return lambda path: model.save_pretrained(path.parent)

    weights, pickled, folder = "model.safetensors", "checkpoint.pth", "model/model.safetensors"
    model = giant()
    yield "timm-giant", weights, model, 1, of_timm(model), None
    yield "dinov2-giant", pickled, model, 1, of_dinov2(model, 0), None
    yield "dinov2-giant-in-chunks", pickled, model, 1, of_dinov2(model, 1), None
    model = giant(reg_tokens=4, no_embed_class=True)
    yield "timm-giant-registers", weights, model, 5, of_timm(model), None
    for name in ("vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"):
        model = dinov3(name)
        yield f"timm-{name}", weights, model, 5, of_timm(model), None
    for has_stem in (False, True):
        model = moco(has_stem)
        name = "moco-stem" if has_stem else "moco"
        yield name, pickled, model, 1, of_moco(model), "base_encoder"
    for registers in (0, 4):
        model = hugging_dinov2(registers)
        name = f"transformers-dinov2-{registers}-registers"
        yield name, folder, model, 1 + registers, of_hugging(model), None
    model = hugging_dinov3()
    yield "transformers-dinov3", folder, model, 5, of_hugging(model), None


def exported() -> Iterator[tuple[str, nn.Module, int, float]]:
    """Networks of timm that go to timm and to `transformers`: name, tokens before patches, `eps`."""
    yield "giant", giant(), 1, 1e-6
    yield "dinov3", dinov3(), 5, 1e-5
    yield "dinov3 with biases", dinov3("vit_small_patch16_dinov3_qkvb"), 5, 1e-5


def from_folders(folder: Path, eps: float) -> dict[str, object]:
    """What loads the exports of both programs."""
    norm = functools.partial(nn.LayerNorm, eps=eps)
    return {
        "timm": lambda: timm.create_model(
            f"local-dir:{folder / 'timm'}", pretrained=True, norm_layer=norm
        ),
        "transformers": lambda: transformers.AutoModel.from_pretrained(folder / "transformers"),
    }
