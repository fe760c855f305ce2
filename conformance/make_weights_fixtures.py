"""Makes the files that `esvit-weights` is tested with, and checks what it writes.

    python make_weights_fixtures.py ../crates/esvit-weights/tests/fixtures

makes the same content in the formats of `torch.save` (zip and legacy, pickle protocols
2 and 4), and beside them `expected.json` with the values of every tensor. The keys of
legacy storages are addresses, so that these files differ from run to run.

    cargo run --release -p esvit-weights --example write -- /tmp/written
    python make_weights_fixtures.py --check /tmp/written

loads what the crate writes, with `torch.load(weights_only=True)` and
`safetensors.torch.load_file`, and compares it with the values that the example writes.
"""

import argparse
import json
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn


def state() -> OrderedDict[str, torch.Tensor]:
    """Tensors of every type and layout."""
    noted, noted_parameter = torch.ones(2), nn.Parameter(torch.ones(3))
    noted.note = noted_parameter.note = "has an attribute"  # type: ignore[attr-defined]
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8 - 1
    tensors = OrderedDict(
        f32=base.clone(),
        f16=base.half(),
        bf16=base.bfloat16(),
        f64=base.double() / 3,
        i64=torch.tensor([[-1, 2**40], [3, -(2**40)]]),
        i32=torch.tensor([-7, 8], dtype=torch.int32),
        i16=torch.tensor([-7, 8], dtype=torch.int16),
        i8=torch.tensor([-7, 8], dtype=torch.int8),
        u8=torch.tensor([0, 255], dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        transposed=base.t(),
        narrowed=base[1:3, 2:5],
        row=base[2],
        stepped=base[::2, ::3],
        expanded=base[0, :3].expand(2, 3),
        parameter=nn.Parameter(base[:2].clone()),
        noted=noted,
        noted_parameter=noted_parameter,
        empty=torch.empty(0, 3),
        scalar=torch.tensor(2.5),
    )
    tensors._metadata = OrderedDict([("", {"version": 1})])  # type: ignore[attr-defined]
    return tensors


def checkpoint() -> dict[str, Any]:
    """A checkpoint as training scripts write them."""
    return {
        "student": state(),
        "teacher": {"module.norm.weight": torch.ones(3)},
        "optimizer": {
            "state": {0: {"step": 5, "exp_avg": torch.full((2,), 0.25)}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}],
        },
        "epoch": 7,
        "seed": 2**63 + 1,
        "best": np.float64(61.5),
        "steps": np.int64(-3),
        "args": argparse.Namespace(arch="swin_tiny", lr=5e-4, local=(96, 96), crops=None, fp16=True),
        "names": {"a", "b"},
        "raw": b"\x00\xff",
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "complex": torch.tensor([1 + 2j]),
    }


def expected(prefix: str, value: Any, into: dict[str, Any]) -> None:
    """Lists the tensors below `value` by group and name."""
    if isinstance(value, torch.Tensor):
        if value.is_complex() or value.dtype == torch.uint16:
            return
        group, _, name = prefix.rpartition("/")
        into[prefix] = {
            "group": group,
            "name": name,
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "values": value.detach().double().flatten().tolist()
            if value.is_floating_point()
            else value.flatten().long().tolist(),
        }
    elif isinstance(value, dict):
        for key, inner in value.items():
            expected(f"{prefix}/{key}" if prefix else str(key), inner, into)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            expected(f"{prefix}/{i}" if prefix else str(i), inner, into)


def make(out: Path) -> None:
    torch.manual_seed(0)
    content = checkpoint()
    zipped = {"_use_new_zipfile_serialization": True}
    legacy = {"_use_new_zipfile_serialization": False}
    # The legacy format has no 16 bits without sign.
    more = content | {"u16": torch.tensor([1, 2], dtype=torch.uint16)}
    torch.save(more, out / "zip.pth", **zipped)
    torch.save(more, out / "zip_protocol4.pth", pickle_protocol=4, **zipped)
    torch.save(content, out / "legacy.pth", **legacy)
    torch.save(content, out / "legacy_protocol4.pth", pickle_protocol=4, **legacy)
    torch.save(state(), out / "state_dict.pth", **zipped)
    module = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Linear(2, 3)), norm=nn.BatchNorm1d(3)))
    torch.save(module, out / "module.pth", **zipped)
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in state().items()}
    save_file(plain, out / "state_dict.safetensors", {"format": "pt", "about": "a test"})
    script = torch.jit.script(nn.Linear(2, 2))
    script.save(str(out / "script.pt"))
    with zipfile.ZipFile(out / "script.pt") as archive:
        small = {name: archive.read(name) for name in archive.namelist() if "debug_pkl" not in name}
    with zipfile.ZipFile(out / "script.pt", "w") as archive:
        for name, data in small.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    values: dict[str, Any] = {}
    expected("", content, values)
    text = json.dumps(values, indent=None, separators=(",", ":"))
    (out / "expected.json").write_text(text.replace('},"', '},\n"') + "\n")


def check(written: Path) -> None:
    """Compares the example's two files with each other and with what it said it writes."""
    loaded = torch.load(written / "written.pth", weights_only=True)
    tensors = load_file(written / "written.safetensors")
    assert loaded["epoch"] == 7 and loaded["big"] == 2**40 and loaded["lr"] == 0.125
    assert loaded["on"] is True and loaded["none"] is None and loaded["text"] == "grün"
    assert set(loaded["model"]) == set(tensors)
    assert loaded["list"][1].item() == 5.0
    for name, tensor in tensors.items():
        other = loaded["model"][name]
        assert tensor.dtype == other.dtype and torch.equal(tensor, other), name
        ramp = torch.arange(tensor.numel(), dtype=torch.float32) / 8 - 1
        assert torch.equal(tensor, ramp.reshape(tensor.shape).to(tensor.dtype)), name
    with zipfile.ZipFile(written / "written.pth") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            with archive.open(info):
                pass
    print(f"{len(tensors)} tensors in both files: {', '.join(sorted(tensors))}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    check(given.folder) if given.check else make(given.folder)


if __name__ == "__main__":
    main()
