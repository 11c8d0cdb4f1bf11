"""What pretraining gave the tiny checkpoint: the same model with random weights beside it.

    python benchmarks/tiny.py                            # needs PLAINBERT_DATA; takes 15 minutes
    python benchmarks/tiny.py --sample                   # the default run on data/; 4 minutes

One epoch on the real course data, the better pair mode of each, three seeds; and the accuracy at
masked tokens of the dev files, of which pretraining saw nothing.
"""

import json
import os
import statistics
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import train_multitask
from bert import Bert, Tokenizer
from bert.checkpoint import pretraining_heads
from common.cli import Parser, run_script
from common.tables import markdown_table
from multitask.course import read_course_file
from multitask.metrics import main_scores
from multitask.tasks import TASKS
from pretraining.corpus import Corpus
from pretraining.masking import HeldOut, Masking
from pretraining.model import MaskedLM, load_head

DATA = Path(os.environ.get("PLAINBERT_DATA", ".")) / "cs224n"
SEEDS = (0, 1, 2)
MODES = {"joint": (), "separate, cosine": ("--pairs", "separate", "--head", "sts=cosine")}
COLUMNS = ("sst", "para", "sts", "overall")


def random_checkpoint(folder, seed):
    """The tiny checkpoint's configuration and vocabulary with new random weights."""
    torch.manual_seed(seed)
    Bert(Bert.from_pretrained("tiny").config).save_pretrained(folder)
    Tokenizer.from_pretrained("tiny").save_pretrained(folder)
    return folder


def train(out, *flags):
    """Train a run → {task: first metric, "overall": …}."""
    train_multitask.main([*map(str, flags), "--out", str(out)])
    return main_scores(json.loads((out / "metrics.json").read_text()))


def masked_accuracy():
    """→ accuracy at masked tokens of the dev files' texts, and that of the commonest token."""
    lines = list(dict.fromkeys(text for task in ("sst", "para", "sts") for example in
                               read_course_file(DATA / TASKS[task].files["dev"], TASKS[task])
                               for text in example.texts))
    tokenizer, model = Tokenizer.from_pretrained("tiny"), MaskedLM(Bert.from_pretrained("tiny"))
    load_head(model.head, pretraining_heads("tiny"), "tiny")
    corpus, line_ids = Corpus(tokenizer, lines, 128), torch.arange(len(lines))
    held_out = HeldOut(corpus, line_ids, line_ids, Masking(tokenizer))
    scores = held_out.scores(model, None, torch.device("cpu"), nullcontext)
    return scores["masked_accuracy"], scores["commonest_token_accuracy"]


def sample_runs(folder):
    """The default run, three seeds, and one from random weights, as rows of a table."""
    start = random_checkpoint(folder / "start", 0)
    rows = [("weights", "seed", *COLUMNS)]
    for weights, flags, seeds in (("pretrained", (), SEEDS), ("random", ("--bert", start), (0,))):
        for seed in seeds:
            scores = train(folder / f"{weights}-{seed}", *flags, "--seed", seed)
            rows.append((weights, str(seed), *(f"{scores[name]:.3f}" for name in COLUMNS)))
    return rows


def real_runs(folder):
    """One epoch on the real data: both pair modes with the first seed, the better one with all, as
    rows of a table with the means over the seeds."""
    rows = [("weights", "pairs", "seeds", *COLUMNS)]
    for weights in ("pretrained", "random"):
        runs = {mode: [] for mode in MODES}
        for seed in SEEDS:
            start = random_checkpoint(folder / f"r{seed}", seed) if weights == "random" else "tiny"
            modes = MODES if seed == SEEDS[0] else [max(runs, key=lambda m: runs[m][0]["overall"])]
            for mode in modes:
                runs[mode].append(train(folder / f"{weights}-{mode}-{seed}", "--bert", start,
                                        "--data", DATA, "--epochs", 1, "--lr", 3e-4, "--seed", seed,
                                        *MODES[mode]))
        for mode, scores in runs.items():
            means = [f"{statistics.mean(s[name] for s in scores):.3f}" for name in COLUMNS]
            rows.append((weights, mode, str(len(scores)), *means))
    return rows


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="the default run on data/")
    sample = parser.parse_args().sample
    with tempfile.TemporaryDirectory() as folder:
        if sample:
            return print(markdown_table(sample_runs(Path(folder))))
        print(markdown_table(real_runs(Path(folder))))
    print("masked tokens of the dev files: accuracy {:.3f}, of the commonest token {:.3f}".format(
        *masked_accuracy()))


if __name__ == "__main__":
    run_script(main)
