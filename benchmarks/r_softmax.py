"""r-softmax beside the softmax: time, an output for many labels, and MiniLM on SST.

    python benchmarks/r_softmax.py                        # all parts
    python benchmarks/r_softmax.py --parts speed,labels
    python benchmarks/r_softmax.py --parts runs --seeds 0,1 --variants softmax,"ramp 0.1"

speed   both functions at [49,152 × 128], and a training step of MiniLM
labels  documents of several topics (synthetic): which topics, by softmax, sparsemax and r-softmax
runs    three epochs of SST with each share of zeros, with the ramp and without ("swap"): accuracy
        and the share of zeros among the entries of attention on dev. A stopped benchmark goes on.

PLAINBERT_WEIGHTS and PLAINBERT_DATA: see README.md.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import mean, median

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.recipes import train_run  # noqa: E402
from bert import Bert, Tokenizer  # noqa: E402
from bert.errors import check_known  # noqa: E402
from bert.r_softmax import configure, label_distribution, measured_zeros, r_softmax  # noqa: E402
from common.tables import markdown_table  # noqa: E402
from multitask import runs  # noqa: E402
from multitask.evaluation import load_sets, load_split  # noqa: E402
from multitask.model import MultitaskModel, build_head  # noqa: E402
from multitask.schedule import BatchSampler  # noqa: E402
from multitask.settings import Settings  # noqa: E402

BUDGET = "--tasks sst --epochs 3 --precision bf16"
VARIANTS = {"softmax": "", **{
    f"{name} {zeros}": f"--attention r-softmax --zeros {zeros} {flags}"
    for zeros in (0.1, 0.2) for name, flags in (("ramp", ""), ("swap", "--zeros-ramp 0"),
                                                ("detached", "--zeros-gradient detached"))}}


def seconds(function, times=9):
    """The CPU time of a call: what else the machine does counts little."""
    found = []
    for _ in range(times):
        began = time.process_time()
        function()
        found.append(time.process_time() - began)
    return median(found)


def speed():
    scores, rows = torch.randn(49152, 128), [["", "× softmax"]]
    mask = torch.ones(1, 128, dtype=torch.bool)
    plain = seconds(lambda: scores.softmax(dim=-1))
    for zeros in (0.05, 0.1, 0.2):
        for name, valid in (("", True), (", with a mask", mask)):
            took = seconds(lambda zeros=zeros, valid=valid: r_softmax(scores, zeros, valid))
            rows.append([f"r-softmax, zeros {zeros}{name}", f"{took / plain:.1f}"])
    data = Path(os.environ["PLAINBERT_DATA"]) / "cs224n"
    tokenizer = Tokenizer.from_pretrained(os.environ["PLAINBERT_WEIGHTS"])
    split = load_split("sst", "train", data, tokenizer, Settings(), 3200)
    order = BatchSampler(len(split), 32, seed=0)
    batches = [split.batch(next(order)) for _ in range(8)]
    steps = {}
    for attention in ("sdpa", "eager", "r-softmax"):
        bert = Bert.from_pretrained(os.environ["PLAINBERT_WEIGHTS"], attention)
        model = MultitaskModel({"shared": bert}, {"sst": build_head(
            "sst", "linear", bert.config.hidden_size, "joint", 0.0)}).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def step(batch, model=model, optimizer=optimizer):
            loss = torch.nn.functional.cross_entropy(model("sst", batch), batch.labels.long())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step(batches[0])
        steps[attention] = [seconds(lambda batch=batch: step(batch), 3) for batch in batches]
    for attention in ("eager", "r-softmax"):
        ratio = median(a / b for a, b in zip(steps[attention], steps["sdpa"]))
        rows.append([f"a training step with {attention}, × sdpa", f"{ratio:.2f}"])
    print(markdown_table(rows))


# ---- many labels

def sparsemax(scores):
    """The nearest point of the simplex (Martins & Astudillo 2016, arXiv 1602.02068)."""
    ordered = scores.sort(dim=-1, descending=True).values
    above = ordered.cumsum(-1) - 1
    k = (ordered * torch.arange(1, scores.size(-1) + 1) > above).sum(-1, keepdim=True)
    return (scores - above.gather(-1, k - 1) / k).relu()


def documents(count, topics, words, generator, topic_words):
    """Bags of 50 words [count, words] on one to `topics` topics, and which [count, topics]."""
    number = torch.poisson(torch.full((count,), topics / 4), generator=generator).clamp(1, topics)
    order = torch.rand(count, topics, generator=generator).argsort(dim=1).argsort(dim=1)
    labels = (order < number[:, None]).float()
    mixture = labels @ topic_words
    drawn = torch.multinomial(mixture, 50, replacement=True, generator=generator)
    return torch.zeros(count, words).scatter_add_(1, drawn, torch.ones(count, 50)) / 7, labels


def label_loss(scores, probabilities, labels):
    """‖p - η‖² + the mean of max(0, η_i - (z_i - z_j)) over present i and absent j (Laha et al.
    2018, arXiv 1810.11975); η is even over the labels that are present."""
    target = labels / labels.sum(1, keepdim=True)
    pairs = labels[:, :, None] * (1 - labels)[:, None]
    hinge = (target[:, :, None] - scores[:, :, None] + scores[:, None]).relu() * pairs
    return ((probabilities - target).square().sum(1) + hinge.sum((1, 2)) / labels.sum(1)).mean()


def f1(found, labels):
    return float(2 * (found * labels).sum() / (found.sum() + labels.sum()))


def fit(mapping, train, seed):
    """A linear layer for scores, and one for the number of labels."""
    (features, labels), topics = train, train[1].size(1)
    torch.manual_seed(seed)
    model = torch.nn.Linear(features.size(1), 2 * topics)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(250):
        scores, counts = model(features).chunk(2, dim=1)
        number = labels.sum(1, keepdim=True).long()
        loss = label_loss(scores, mapping(scores, number), labels)
        loss = loss + torch.nn.functional.cross_entropy(counts, number.squeeze(1) - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def labels_part(seeds=3):
    mappings = {"softmax": lambda z, n: z.softmax(dim=1), "sparsemax": lambda z, n: sparsemax(z),
                "r-softmax": label_distribution}
    scores = {name: [] for name in (*mappings, "r-softmax, number given")}
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        topic_words = torch.rand(10, 100, generator=generator) ** 6
        train, dev, test = (documents(count, 10, 100, generator, topic_words)
                            for count in (1000, 500, 1000))
        for name, mapping in mappings.items():
            model = fit(mapping, train, seed)
            with torch.no_grad():
                found = []
                for features, labels in (dev, test):
                    z, counts = model(features).chunk(2, dim=1)
                    number = 1 + counts.argmax(dim=1, keepdim=True)
                    found.append((mapping(z, number), labels, z))
            cuts = [c / 100 for c in range(1, 40)] if name == "softmax" else [0]
            cut = max(cuts, key=lambda c: f1((found[0][0] > c).float(), found[0][1]))
            p, labels, z = found[1]
            scores[name].append(f1((p > cut).float(), labels))
            if name == "r-softmax":
                exact = mapping(z, labels.sum(1, keepdim=True))
                scores["r-softmax, number given"].append(f1((exact > 0).float(), labels))
    print(markdown_table([["", "F1, mean", "lowest", "highest"], *(
        [name, *(f"{value:.3f}" for value in (mean(of), min(of), max(of)))]
        for name, of in scores.items())]))


# ---- runs

@torch.inference_mode()
def dev_zeros(folder):
    """The share of zeros among the entries of a run's attention on dev; 0 of a softmax."""
    model, tokenizer, settings, _ = runs.open_run(folder)
    split = load_sets(model.heads, settings, tokenizer)["sst"]["dev"]
    configure(model.bert, counting=True)
    shares, weights = [], []
    for indices in split.by_length(2048):
        batch = split.batch(indices)
        model("sst", batch)
        share = measured_zeros(model.bert)
        shares.append(0.0 if share is None else float(share))
        weights.append(float(batch.layout.mask.sum(1).square().sum()))
    return sum(s * w for s, w in zip(shares, weights)) / sum(weights)


def runs_part(seeds, names, out):
    rows = [["", *(f"seed {seed}" for seed in seeds), "mean", "zeros of attention"]]
    for name in names:
        folders = [out / f"{name.replace(' ', '-')}-{seed}" for seed in seeds]
        for folder, seed in zip(folders, seeds):
            train_run(folder, f"{BUDGET} --seed {seed} {VARIANTS[name]}")
        scores = [runs.read_scores(folder)["sst"]["accuracy"] for folder in folders]
        rows.append([name, *(f"{score:.3f}" for score in scores), f"{mean(scores):.3f}",
                     f"{mean(map(dev_zeros, folders)):.3f}"])
    print(markdown_table(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="speed,labels,runs")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="of the runs (default: "
                                                                       "%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/r_softmax"))
    args = parser.parse_args()
    parts = args.parts.split(",")
    if {"speed", "runs"} & set(parts) and not {"PLAINBERT_WEIGHTS",
                                               "PLAINBERT_DATA"} <= set(os.environ):
        sys.exit("set PLAINBERT_WEIGHTS and PLAINBERT_DATA; README.md says to what")
    if "speed" in parts:
        speed()
    if "labels" in parts:
        labels_part()
    if "runs" in parts:
        names = args.variants.split(",")
        for name in names:
            check_known(name, VARIANTS, "variant", where="--variants")
        runs_part(args.seeds.split(","), names, args.out)


if __name__ == "__main__":
    main()
