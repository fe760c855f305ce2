"""The table of what is learnt with L_V and with L_V + L_R, over seeds, as Markdown.

    python results.py PROGRAM --view RUN... --both RUN... [--train FOLDER --val FOLDER]

PROGRAM is `esvit`, the others are folders of finished runs. Without folders the tasks are those of the
built-in images. Every run is evaluated at its last checkpoint (the best one may be chosen by k-NN
on the same images); the untrained network is that of each run's seed.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

K = 10


def last_checkpoint(run):
    return max((run / "checkpoints").glob("epoch=*.safetensors"))


def evaluate(program, run, data):
    """Figures of a run's network and of the same network untrained."""

    def answer(what, *options):
        command = [program, "eval", what, "--checkpoint", last_checkpoint(run), "--json", *options]
        ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        return json.loads(ended.stdout)

    labelled = ["--train", data.train, "--val", data.val] if data.train else []
    images = ["--data", data.val] if data.train else []
    knn = {row["features"]: row["accuracies"][0]["top1"] for row in answer("knn", "--k", K, *labelled)["results"]}
    linear = answer("linear", *labelled)
    found = {row["features"]: row for row in answer("correspondence", *images)["results"]}
    attention = answer("attention", "--against", "untrained", "--images", 400, *images)

    def figures(network, linear_top1, blocks):
        return {
            f"k-NN (k = {K})": knn[network],
            "linear": linear_top1,
            "correspondence": 100 * found[network]["accuracy"]["mean"],
            "distance, px": found[network]["distance"]["mean"],
            "attention entropy, bits": statistics.mean(block["entropy"] for block in blocks),
            "diversity, bits": statistics.mean(block["diversity"] for block in blocks),
        }

    return (
        figures("trained", linear["best"]["top1"], attention["blocks"]),
        figures("untrained", linear["untrained"]["top1"], attention["against"]["blocks"]),
    )


def cell(values):
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--view", type=Path, nargs="+", required=True)
    parser.add_argument("--both", type=Path, nargs="+", required=True)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--val", type=Path)
    arguments = parser.parse_args()
    view = [evaluate(arguments.program, run, arguments) for run in arguments.view]
    both = [evaluate(arguments.program, run, arguments) for run in arguments.both]
    rows = {
        "untrained": [untrained for _, untrained in both],
        "L_V": [trained for trained, _ in view],
        "L_V + L_R": [trained for trained, _ in both],
    }
    names = list(rows["untrained"][0])
    print("| | " + " | ".join(names) + " |")
    print("|---|" + "---|" * len(names))
    for row, seeds in rows.items():
        print(f"| {row} | " + " | ".join(cell([seed[name] for seed in seeds]) for name in names) + " |")


if __name__ == "__main__":
    main()
