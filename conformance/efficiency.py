"""What the region loss costs on a multi-stage and on a single-scale backbone, as Markdown.

    efficiency.py ESVIT [--quick] [--arch swin_tiny_w7 vit_small16] [--batch 1 2 4 8 12] [--precision auto]
                  [--iterations 3] [--limit 600]

ESVIT is the program, whose `esvit bench` measures. Every measurement is a process of its own, so that its peak memory
is its own; one follows the other, and both losses of a batch are neighbors, so that a slow minute of the machine hits
both. `--quick` takes batches of 1 and 4. What takes longer than `--limit` seconds is ended, and no larger batch of the
same backbone and loss is tried.

Logits are not measured but computed: those of one step held whole, once, in f32, student's and teacher's, as the
published program holds them. Its softmax, its gathered targets and the gradients come on top.
"""

import argparse
import json
import subprocess
import sys

PROTOTYPES = 65_536
GLOBAL_SIZE, GLOBAL_VIEWS = 224, 2
LOCAL_SIZE, LOCAL_VIEWS = 96, 8
BATCHES, QUICK_BATCHES = [1, 2, 4, 8, 12], [1, 4]
FORWARD_BATCH = 8
LOSSES = {"L_V": ["--view-only"], "L_V + L_R": []}


class Failed(Exception):
    """A measurement gave nothing, for this reason."""


class Program:
    """The program under test and how it is run."""

    def __init__(self, path: str, precision: str, iterations: int, limit: float) -> None:
        self.path, self.limit = path, limit
        self.options = ["--precision", precision, "--iterations", str(iterations)]

    def answer(self, *arguments: str) -> dict:
        """The JSON that a command prints."""
        command = [self.path, *arguments, "--json"]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=self.limit)
        except subprocess.TimeoutExpired:
            raise Failed(f"over {self.limit:g} s") from None
        if ended.returncode < 0:
            raise Failed(f"ended by signal {-ended.returncode}")
        if ended.returncode != 0:
            first = next((line for line in ended.stderr.splitlines() if line.strip()), "no message")
            raise Failed(first.removeprefix("error: "))
        return json.loads(ended.stdout)

    def bench(self, what: str, arch: str, batch: int, *loss: str) -> dict:
        sizes = ["--global-size", str(GLOBAL_SIZE), "--local-size", str(LOCAL_SIZE)]
        crops = ["--local-crops", str(LOCAL_VIEWS), "--prototypes", str(PROTOTYPES)]
        network = ["--arch", arch, "--batch", str(batch), *sizes, *crops]
        print(f"{arch}, batch {batch}: {' '.join([what, *loss])}", file=sys.stderr, flush=True)
        report = self.answer("bench", what, *network, *loss, *self.options)
        print(f"  {report['median_s']:.3f} s, {report['peak_rss_mb']:.0f} MiB", file=sys.stderr, flush=True)
        return report


def logits_mib(info: dict, batch: int) -> float:
    """MiB of the logits of a step with both losses, held whole in f32.

    The student has a row for every view and every token of it, the teacher for those of the global views.
    """
    rows_of_global = GLOBAL_VIEWS * (1 + info[f"tokens_{GLOBAL_SIZE}"])
    rows_of_local = LOCAL_VIEWS * (1 + info[f"tokens_{LOCAL_SIZE}"])
    rows = rows_of_global + rows_of_local + rows_of_global
    return batch * rows * PROTOTYPES * 4 / 2**20


def measure_steps(program: Program, arch: str, batches: list[int]) -> dict:
    """Reports, or why there is none, by batch and loss."""
    steps: dict = {}
    failed = set()
    for batch in sorted(batches):
        for loss, options in LOSSES.items():
            if loss in failed:
                steps[batch, loss] = Failed("not tried")
                continue
            try:
                steps[batch, loss] = program.bench("train-step", arch, batch, *options)
            except Failed as reason:
                print(f"  {reason}", file=sys.stderr, flush=True)
                failed.add(loss)
                steps[batch, loss] = reason
    return steps


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def header(*names: str) -> str:
    return row(*names) + "\n|" + "---|" * len(names)


def cells_of(view: dict | Failed, all_tasks: dict | Failed, value, unit: str) -> list[str]:
    """Cells of a figure of both losses and of their ratio, with a dash where one is missing."""
    reports = [view, all_tasks]
    cells = [str(each) if isinstance(each, Failed) else f"{value(each):{unit}}" for each in reports]
    if any(isinstance(each, Failed) for each in reports) or value(view) == 0:
        return [*cells, "-"]
    return [*cells, f"{value(all_tasks) / value(view):.2f}"]


def seconds(report: dict) -> float:
    return report["median_s"]


def memory(report: dict) -> float:
    return report["peak_rss_mb"]


def macs(report: dict) -> float:
    return report["gflops"] * report["median_s"]


def backbones_table(infos: dict, forwards: dict) -> None:
    print(header("backbone", "tokens of a global and a local view", "parameters", "MACs", "forward, images/s"))
    for arch, info in infos.items():
        tokens = f"{info[f'tokens_{GLOBAL_SIZE}']}, {info[f'tokens_{LOCAL_SIZE}']}"
        size = f"{info['parameters'] / 1e6:.1f} M"
        print(row(arch, tokens, size, f"{info[f'macs_{GLOBAL_SIZE}'] / 1e9:.2f} G", forwards[arch]))


def memory_table(infos: dict, steps: dict, batches: list[int]) -> None:
    logits = "logits held whole, computed"
    print(header("backbone", "batch", "L_V, MiB", "L_V + L_R, MiB", "ratio", "L_R adds, MiB", f"{logits}, MiB"))
    for arch, info in infos.items():
        for batch in batches:
            pair = [steps[arch][batch, loss] for loss in LOSSES]
            is_measured = not any(isinstance(each, Failed) for each in pair)
            added = f"{memory(pair[1]) - memory(pair[0]):.0f}" if is_measured else "-"
            whole = f"{logits_mib(info, batch):.0f}"
            print(row(arch, str(batch), *cells_of(*pair, memory, ".0f"), added, whole))


def time_table(infos: dict, steps: dict, batches: list[int]) -> None:
    print(header("backbone", "batch", "L_V, s", "L_V + L_R, s", "ratio", "ratio of MACs"))
    for arch in infos:
        for batch in batches:
            pair = [steps[arch][batch, loss] for loss in LOSSES]
            print(row(arch, str(batch), *cells_of(*pair, seconds, ".2f"), cells_of(*pair, macs, ".0f")[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("esvit")
    parser.add_argument("--quick", action="store_true", help="batches of 1 and 4")
    parser.add_argument("--arch", nargs="+", default=["swin_tiny_w7", "vit_small16"])
    parser.add_argument("--batch", nargs="+", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--iterations", type=int, default=3, help="timed repetitions after one warm-up")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a measurement may take")
    options = parser.parse_args()
    batches = sorted(set(options.batch or (QUICK_BATCHES if options.quick else BATCHES)))
    program = Program(options.esvit, options.precision, options.iterations, options.limit)

    listed = {entry["name"]: entry for entry in program.answer("info")["architectures"]}
    unknown = [arch for arch in options.arch if arch not in listed]
    if unknown:
        sys.exit(f"there is no architecture {', '.join(unknown)}\nhint: `esvit info` lists them")
    infos = {arch: listed[arch] for arch in options.arch}
    forwards, steps, machine = {}, {}, None
    for arch in infos:
        try:
            machine = program.bench("forward", arch, FORWARD_BATCH)
            forwards[arch] = f"{machine['images_per_s']:.1f}"
        except Failed as reason:
            forwards[arch] = str(reason)
        steps[arch] = measure_steps(program, arch, batches)

    if machine is not None:
        print(f"{machine['precision']}, `{machine['isa']}`, {machine['threads']} threads, {PROTOTYPES:,} prototypes,")
        print(f"medians of {options.iterations}; forward passes of {FORWARD_BATCH} images.\n")
    backbones_table(infos, forwards)
    print()
    memory_table(infos, steps, batches)
    print()
    time_table(infos, steps, batches)


if __name__ == "__main__":
    main()
