"""Holds linear probes against PyTorch and scikit-learn.

    cargo build --release --workspace --bins --examples
    python probe.py --esvit target/release/esvit --probe target/release/examples/probe \
        --checkpoint run/checkpoints/best.safetensors

`esvit eval linear --dump` writes the features of a backbone; others are made up. The same probe is
fitted to them by the example `probe`, by PyTorch (SGD with momentum, cosine to 0, as in the
reference) and by scikit-learn (logistic regression, L-BFGS), with the same settings. Trainings by
SGD differ by their random starts and orders, so means over several seeds are compared.

`--train` and `--val` name labelled folders in the place of the built-in images. The exit status is
1 if a top-1 accuracy differs by more than 0.3 points. Top-5 is shown beside it: of a few hundred
queries it moves by more than that from one seed to the next.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

TOLERANCE = 0.3


def write_clusters(folder, rows=3000, width=64, classes=20, spread=2.5):
    """Made-up features: normal clouds that overlap a little."""
    random = np.random.default_rng(0)
    centers = random.standard_normal((classes, width))
    folder.mkdir()
    for name, count in ("train", rows), ("query", rows):
        labels = random.integers(classes, size=count)
        features = centers[labels] + spread * random.standard_normal((count, width))
        np.save(folder / f"{name}_features.npy", features.astype(np.float32))
        np.save(folder / f"{name}_labels.npy", labels.astype(np.int64))


def output_of(*line):
    """The JSON that a command prints."""
    line = list(map(str, line))
    return json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)


def sgd(features, labels, classes, lr, epochs, seed, batch=256):
    """A linear layer trained as in the reference."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(features.shape[1], classes)
    torch.nn.init.normal_(layer.weight, std=0.01)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr * batch / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=0)
    for _ in range(epochs):
        for rows in torch.randperm(len(features)).split(batch):
            loss = torch.nn.functional.cross_entropy(layer(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return layer


def accuracy(logits, labels):
    """Top-1 and top-5 in per cent."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    hits = order == labels[:, None]
    return 100 * hits[:, 0].mean(), 100 * hits.any(axis=1).mean()


def compare(name, folder, options):
    """Yields the name of a probe with its accuracies here and there, seed by seed."""
    read = lambda file: np.load(folder / f"{file}.npy")
    train, labels = read("train_features"), read("train_labels")
    queries, truth = read("query_features"), read("query_labels")
    classes = int(max(labels.max(), truth.max())) + 1
    tensors = torch.from_numpy(train), torch.from_numpy(labels)
    seeds = range(options.seeds)

    def ours(*rest):
        best = output_of(options.probe, folder, *rest)["best"]
        return best["top1"], best["top5"]

    for lr in options.lr:
        own = [ours("sgd", lr, options.epochs, seed) for seed in seeds]
        other = []
        for seed in seeds:
            layer = sgd(*tensors, classes, lr, options.epochs, seed)
            with torch.no_grad():
                other.append(accuracy(layer(torch.from_numpy(queries)).numpy(), truth))
        yield f"{name} sgd lr={lr:g}, PyTorch", own, other
    for l2 in options.l2:
        strength = 1 / (l2 * len(train))
        model = LogisticRegression(C=strength, max_iter=5000, tol=1e-6)
        model.fit(train.astype(np.float64), labels)
        logits = np.full((len(queries), classes), -math.inf)
        logits[:, model.classes_] = model.decision_function(queries.astype(np.float64))
        yield f"{name} logistic l2={l2:g}, sklearn", [ours("logistic", l2)], [accuracy(logits, truth)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--esvit", required=True)
    parser.add_argument("--probe", required=True, help="the example `probe` of esvit-eval")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--train", type=Path, help="labelled folder to learn from")
    parser.add_argument("--val", type=Path, help="labelled folder whose images are classified")
    parser.add_argument("--n", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--lr", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--l2", type=float, nargs="+", default=[1e-4, 1e-2])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())

    write_clusters(folder / "clusters")
    sets = [("clusters", folder / "clusters")]
    images = ["--train", options.train, "--val", options.val] if options.train else []
    for n in options.n:
        dump = folder / f"features-{n}"
        line = [options.esvit, "eval", "linear", "--checkpoint", options.checkpoint, *images]
        line += ["--n", n, "--dump", dump, "--solver", "logistic", "--l2", options.l2[0]]
        best = output_of(*line, "--no-baseline", "--json", "--quiet")["best"]
        # The command itself says the same as the example on the features that it wrote.
        again = output_of(options.probe, dump, "logistic", options.l2[0])["best"]
        assert best["top1"] == again["top1"], (best, again)
        sets.append((f"n={n}", dump))

    print(f"{'probe':34}{'top-1':>7}{'other':>8}{'points':>8}{'top-5':>9}{'other':>8}{'points':>8}")
    worst = 0.0
    for name, path in sets:
        for probe, own, other in compare(name, path, options):
            own, other = np.mean(own, axis=0), np.mean(other, axis=0)
            worst = max(worst, abs(own - other)[0])
            cells = [f"{a:7.2f} {b:7.2f} {a - b:+7.2f}" for a, b in zip(own, other)]
            print(f"{probe:34}{'  '.join(cells)}", flush=True)
    print(f"largest difference of top-1: {worst:.2f} points")
    sys.exit(int(worst > TOLERANCE))


if __name__ == "__main__":
    main()
