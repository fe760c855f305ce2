"""Checks the PyTorch reference against the numeric cases in a folder.

    python check_reference.py DIR             every case below DIR
    python check_reference.py DIR --fixtures  and the published full-size fixtures

One line a case names the quantity that came nearest to its tolerance. The exit status
is 1 if anything is out of tolerance, and 2 if DIR holds no case.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reference import exact, fixtures
from reference.augment import apply
from reference.cases import (
    Case,
    make_network,
    one_thread,
    outputs_by_name,
    run_objective,
)
from reference.evaluation import correspondence, knn_accuracy, knn_scores
from reference.objective import Centers, TeacherTemperature
from reference.swin import Swin, SwinConfig
from reference.training import Step, StepRecord, Trainer, cosine_schedule

# With BatchNorm in the heads, the gradients of the biases before it (and of the final
# norm's bias) are zero in exact arithmetic: what is stored is rounding, so that the
# tolerance of a tensor must not fall below this.
BATCH_NORM_GRADIENT_FLOOR = 3e-6


@dataclass(frozen=True)
class Difference:
    """A measured difference beside what is allowed."""

    name: str
    value: float
    tolerance: float

    @property
    def within(self) -> bool:
        # Written so that a NaN is never within.
        return self.value <= self.tolerance

    @property
    def share(self) -> float:
        """Part of the tolerance that is used."""
        if self.tolerance == 0 or self.value != self.value:
            return 0.0 if self.value == 0 else float("inf")
        return self.value / self.tolerance


def largest_absolute(got: Tensor, want: Tensor) -> float:
    """Largest absolute difference; infinite if the shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    return (got.double() - want.double()).abs().max().item()


def absolute(name: str, got: Tensor, want: Tensor, tolerance: float) -> Difference:
    """Largest absolute difference of two tensors."""
    return Difference(name, largest_absolute(got, want), tolerance)


def scaled(
    name: str, got: Tensor, want: Tensor, tolerance: float, floor: float = 1e-30
) -> Difference:
    """Largest difference as a part of the expected tensor's largest entry."""
    scale = max(want.double().abs().max().item(), floor / tolerance)
    return Difference(name, largest_absolute(got, want) / scale, tolerance)


def relative(name: str, got: float, want: float, tolerance: float) -> Difference:
    """Relative difference of two numbers."""
    return Difference(name, abs(got - want) / max(abs(want), 1e-30), tolerance)


@torch.no_grad()
def check_backbone(case: Case) -> Iterator[Difference]:
    """Features, probe feature and last attention of every input."""
    network = Swin(SwinConfig.from_json(case.settings["config"]))
    network.load_state_dict(case.with_prefix("param."))
    for i in range(case.settings["inputs"]):
        out = network.eval().features(case.tensors[f"input.{i}"])
        results = {
            "cls": out.view,
            "region": out.region,
            "last_blocks": out.last_blocks(case.settings["n_last_blocks"]),
            "last_attention": out.last_attention,
        }
        for name, got in results.items():
            if f"{name}.{i}" in case.tensors:
                yield absolute(f"{name}.{i}", got, case.tensors[f"{name}.{i}"], 2e-4)


def check_objective(case: Case) -> Iterator[Difference]:
    """Loss, gradients and centres."""
    result = run_objective(case)
    yield relative("loss", result.loss, case.settings["loss"], 1e-5)
    for name, got in result.tensors.items():
        yield scaled(name, got, case.tensors[name], 1e-4)


def make_trainer(case: Case) -> Trainer:
    """The run of a `pretrain` case before its first step."""
    student, teacher = make_network(case.settings), make_network(case.settings)
    student.load_state_dict(case.with_prefix("student."))
    teacher.load_state_dict(case.with_prefix("teacher."))
    for p in teacher.parameters():
        p.requires_grad = False
    centers = Centers(
        case.tensors["center"],
        case.tensors.get("center_grid"),
        case.settings["center_momentum"],
    )
    return Trainer(student, teacher, centers, case.settings)


def step_of(values: dict) -> Step:
    """The scheduled values of an entry of `steps`."""
    return Step(**{k: v for k, v in values.items() if k != "loss"})


def check_pretrain(case: Case) -> Iterator[Difference]:
    """Outputs and gradients of the first step, every loss, the state at the end."""
    trainer = make_trainer(case)
    views = case.settings["views"]
    for i, values in enumerate(case.settings["steps"]):
        crops = views["global_crops"] + views["local_crops"]
        images = [case.tensors[f"step.{i}.view.{v}"] for v in range(crops)]
        record = trainer.run(step_of(values), images)
        tolerance = 1e-5 if i == 0 else 1e-4
        yield relative(f"loss of step {i}", record.loss, values["loss"], tolerance)
        if i == 0:
            yield from check_first_step(case, record)
    yield from check_end(case, trainer)


def check_first_step(case: Case, record: StepRecord) -> Iterator[Difference]:
    """Forward results and unclipped gradients."""
    outputs = outputs_by_name("student", record.student)
    outputs |= outputs_by_name("teacher", record.teacher)
    for name, got in outputs.items():
        yield absolute(name, got, case.tensors[name], 2e-4)
    expected = case.with_prefix("grad.")
    if set(expected) != set(record.gradients):
        yield Difference("set of tensors with a gradient", float("inf"), 0)
        return
    use_bn = case.settings["head"].get("use_bn", False)
    floor = BATCH_NORM_GRADIENT_FLOOR if use_bn else 1e-30
    for name, want in expected.items():
        yield scaled(f"grad.{name}", record.gradients[name], want, 1e-4, floor)


def check_end(case: Case, trainer: Trainer) -> Iterator[Difference]:
    """Parameters, buffers and centres after the last step."""
    adamw = case.settings["optimizer"] == "adamw"
    tolerance = 2e-3 if adamw else 1e-4
    networks = {"student": trainer.student, "teacher": trainer.teacher}
    for prefix, network in networks.items():
        state = network.state_dict()
        for name, want in case.with_prefix(f"{prefix}_after.").items():
            got, label = state[name], f"{prefix}_after.{name}"
            if adamw and name.endswith("attn.qkv.bias"):
                yield key_bias(f"{label} (keys)", got, want, case.settings["steps"])
                got, want = without_keys(got), without_keys(want)
            yield scaled(label, got, want, tolerance)
    centers = {"center": trainer.centers.view, "center_grid": trainer.centers.grid}
    for name, got in centers.items():
        if got is not None:
            yield scaled(f"{name}_after", got, case.tensors[f"{name}_after"], tolerance)


def key_bias(name: str, got: Tensor, want: Tensor, steps: list[dict]) -> Difference:
    """The keys' bias adds the same to a query's every score, so its gradient is zero.

    AdamW turns the rounding of that gradient into whole steps of either sign, so that
    two correct runs may drift apart by twice the sum of the learning rates.
    """
    drift = 2 * sum(step["lr"] for step in steps)
    return absolute(name, got.chunk(3)[1], want.chunk(3)[1], drift)


def without_keys(bias: Tensor) -> Tensor:
    """The queries' and the values' part of a joint bias."""
    query, _, value = bias.chunk(3)
    return torch.cat([query, value])


def check_knn(case: Case) -> Iterator[Difference]:
    """Top-1 and top-5 of every k; tied classes may fall either way."""
    data, settings = case.tensors, case.settings
    for k, want in settings["results"].items():
        scores = knn_scores(
            data["train_features"],
            data["train_labels"],
            data["test_features"],
            int(k),
            settings["temperature"],
            settings["num_classes"],
        )
        got = knn_accuracy(scores, data["test_labels"])
        yield outside(f"top1, k={k}", got.top1_range, want["top1"])
        yield outside(f"top5, k={k}", got.top5_range, want["top5"])


def outside(name: str, allowed: tuple[float, float], value: float) -> Difference:
    """How far a percentage lies outside the range that ties allow."""
    low, high = allowed
    return Difference(name, max(low - value, value - high, 0.0), 1e-6)


def check_schedule(case: Case) -> Iterator[Difference]:
    """Every value of every schedule."""
    for i, schedule in enumerate(case.settings["schedules"]):
        got = torch.from_numpy(cosine_schedule(**schedule))
        yield elementwise(f"values.{i}", got, case.tensors[f"values.{i}"])
    for i, schedule in enumerate(case.settings.get("teacher_temperatures", [])):
        temperature = TeacherTemperature(**schedule)
        epochs = [temperature.at(e) for e in range(schedule["epochs"])]
        want = case.tensors[f"teacher_temperature.{i}"]
        yield elementwise(f"teacher_temperature.{i}", torch.tensor(epochs), want)


def elementwise(name: str, got: Tensor, want: Tensor) -> Difference:
    """Largest relative difference of single entries."""
    if got.shape != want.shape:
        return Difference(name, float("inf"), 1e-7)
    want = want.double()
    error = (got.double() - want).abs() / want.abs().clamp_min(1e-30)
    return Difference(name, error.max().item(), 1e-7)


def check_augment(case: Case) -> Iterator[Difference]:
    """Mean and largest difference of every operation, in grey levels."""
    for i, operation in enumerate(case.settings["operations"]):
        image = case.tensors[operation.get("input", "image")].numpy()
        got = torch.from_numpy(apply(image, operation).copy())
        want = case.tensors[f"out.{i}"]
        name = f"out.{i} {operation['op']}"
        if got.shape != want.shape:
            yield Difference(f"{name} shape", float("inf"), 0)
            continue
        error = (got.double() - want.double()).abs()
        mean = 1.0 if operation["op"] == "gaussian_blur" else 0.5
        yield Difference(f"{name} mean", error.mean().item(), mean)
        yield Difference(f"{name} maximum", error.max().item(), 3)


def check_correspondence(case: Case) -> Iterator[Difference]:
    """Matches, and both numbers of the measure."""
    data, settings = case.tensors, case.settings
    got = correspondence(
        data["features1"], data["features2"], settings["grid"], settings["stride"]
    )
    wrong = (got.best_match != data["best_match"]).sum().item()
    yield Difference("best_match", float(wrong), 0)
    yield absolute("similarity", got.similarity, data["similarity"], 1e-5)
    error = abs(got.accuracy - settings["accuracy"])
    yield Difference("accuracy", error, 1e-9)
    error = abs(got.distance_error - settings["distance_error"])
    yield Difference("distance_error", error, 1e-4)


def check_exact(case: Case) -> Iterator[Difference]:
    """What is computed in double precision: other families, other objectives, heads."""
    kind, compute = case.settings["kind"], exact.computer(case.settings)
    assert compute is not None
    found = compute(case.settings, exact.with_floats(case.tensors, torch.float64))
    for path, got in found.numbers.items():
        table, key = exact.place(case.settings, path)
        yield relative(path, got, table[key], exact.NUMBER)
    # Cases from elsewhere need not have all of it.
    for name, got in found.tensors.items():
        if (want := case.tensors.get(name)) is not None:
            yield absolute(name, got, want, exact.tolerance(kind, name, want))


CHECKS: dict[str, Callable[[Case], Iterator[Difference]]] = {
    "backbone": check_backbone,
    "objective": check_objective,
    "pretrain": check_pretrain,
    "knn": check_knn,
    "schedule": check_schedule,
    "augment": check_augment,
    "correspondence": check_correspondence,
}


def report(name: str, differences: list[Difference]) -> bool:
    """Prints the line of a case; says whether all of it is within tolerance."""
    worst = max(differences, key=lambda d: d.share)
    passed = all(d.within for d in differences)
    verdict = "ok  " if passed else "FAIL"
    numbers = f"{worst.value:.2e} (allowed {worst.tolerance:.0e})"
    print(f"{verdict} {name}: {worst.name} {numbers}, {len(differences)} compared")
    return passed


def check_folder(folder: Path) -> bool:
    """Checks one case; kinds and families without a reference are passed over."""
    case = Case.read(folder)
    check = CHECKS.get(case.settings["kind"])
    if exact.computer(case.settings):
        check = check_exact
    elif case.settings.get("family", "swin") != "swin":
        check = None
    try:
        differences = list(check(case)) if check else None
    except NotImplementedError:
        differences = None
    if differences is None:
        print(f"skip {folder.name}: no reference for it here")
        return True
    return report(folder.name, differences)


def check_fixtures() -> bool:
    """Checks the published fixtures, one line a group."""
    passed = []
    for group in fixtures.ALL:
        differences = []
        for name, got, want, tolerance in group():
            error = (torch.tensor(got).double() - torch.tensor(want).double()).abs()
            differences.append(Difference(name, error.max().item(), tolerance))
        passed.append(report(group.__name__.replace("_", " "), differences))
    return all(passed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path, help="folder of case folders")
    parser.add_argument(
        "--fixtures", action="store_true", help="also check the full-size fixtures"
    )
    options = parser.parse_args()
    one_thread()
    folders = sorted(path.parent for path in options.dir.glob("*/case.json"))
    if not folders:
        print(f"no case below `{options.dir}`", file=sys.stderr)
        return 2
    passed = [check_folder(folder) for folder in folders]
    if options.fixtures:
        passed.append(check_fixtures())
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
