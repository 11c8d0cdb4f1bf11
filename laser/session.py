"""A saved run, or a checkpoint with a masked-LM head, opened for work on it: model, dev sets,
device, and where results go."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from bert import Bert, Tokenizer, UserError
from bert.checkpoint import pretraining_heads
from common.device import pick_device
from compression.stored import get_weight, matrix_places
from laser.output_cache import fingerprint
from multitask import runs
from multitask.course import read_course_file
from multitask.evaluation import evaluate, load_dev, load_split
from multitask.tasks import TASKS
from pretraining.__main__ import HeldOut, load_head
from pretraining.corpus import Corpus
from pretraining.masking import MaskedLM, Masking

SAMPLE = 256                         # training examples of each task that say which rows matter


def add_run_flags(parser):
    parser.add_argument("run", metavar="RUN", help="folder of a saved run")
    parser.add_argument("--data", help="folder with the course's files (default: the run's own)")
    parser.add_argument("--limit", type=int, help="only the first N rows of each dev file (0: all; "
                                                  "default: as in training)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"),
                        help="default: the run's")


def data_folder(path):
    if not Path(path).is_dir():
        raise UserError(f"--data {path} is not a folder; it must hold the data files")
    return Path(path)


def results_folder(args):
    """--out, or a folder in the run; of a checkpoint, which may be a name on the hub, one here."""
    if args.out:
        return Path(args.out)
    inside = runs.is_saved_run(args.run)
    return Path(args.run, "laser") if inside else Path(f"laser-{Path(args.run).name}")


class RunSession:
    """`splits` {task: {name: Split}} are the dev sets that training scores, `first_splits` {task:
    Split} the one of each task that counts."""

    def __init__(self, args):
        self.run = Path(args.run)
        self.model, self.tokenizer, settings, _ = runs.open_run(args.run)
        self.precision = args.precision or settings.precision
        self.device, self.autocast = pick_device(args.device, self.precision)
        self.model.to(self.device)
        self.data = data_folder(args.data or settings.data)
        limit = settings.limit if args.limit is None else args.limit
        if limit < 0:
            raise UserError(f"--limit is {limit}; it must be 0 (all rows) or more")
        self.settings = replace(settings, precision=self.precision, limit=limit,
                                data=str(self.data.resolve()))
        self.splits = load_dev(self.model.heads, self.settings, self.tokenizer)
        self.first_splits = {task: next(iter(named.values())) for task, named in
                             self.splits.items()}

    @property
    def fingerprint(self):
        """What scores depend on."""
        return fingerprint(self.model, self.first_splits, self.precision)

    def new_run(self, out, overwrite):
        """The folder of a run to be made of this one; UserError where there is one already."""
        return runs.choose_folder(replace(self.settings, out=out, overwrite=overwrite,
                                          from_run=str(self.run)))

    def evaluate(self):
        """→ scores, predictions, seconds"""
        began = time.perf_counter()
        scores, predictions = evaluate(self.model, self.splits, self.device, self.autocast)
        return scores, predictions, time.perf_counter() - began

    def importance(self, matrices):
        """{(layer, matrix): [n]}: how much each row matters, Σ (∂loss/∂w)² over its weights and
        batches of training examples (Hsu et al. 2022, Fisher-weighted SVD). The loss is the one
        that the run was trained with; frozen weights get gradients from here on."""
        self.model.eval()
        weights = {p: get_weight(self.model.bert, p).requires_grad_()
                   for p in matrix_places(self.model.bert, matrices)}
        found = {p: torch.zeros(len(w)) for p, w in weights.items()}
        for task in self.model.heads:
            split = load_split(task, "train", self.data, self.tokenizer, self.settings, SAMPLE)
            for rows in torch.arange(len(split)).split(16):
                batch = split.batch(rows.tolist()).to(self.device)
                loss = self.settings.loss_of(task)(self.model(task, batch), batch.labels)
                for p, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values()))):
                    found[p] += gradient.square().sum(dim=1).cpu()
        return found


class Model(torch.nn.Module):
    """So that a checkpoint's encoder stands where a run's does."""

    def __init__(self, masked_lm):
        super().__init__()
        self.masked_lm, self.bert = masked_lm, masked_lm.bert


class Checkpoint:
    """A checkpoint with its masked-LM head, scored by hidden tokens of the dev files' texts."""

    def __init__(self, args):
        self.device, self.autocast = pick_device(args.device, args.precision or "fp32")
        found = pretraining_heads(args.run)
        model = MaskedLM(Bert.from_pretrained(args.run))
        if not load_head(model.head, found, args.run):
            raise UserError(f"{args.run} is neither a saved run nor a checkpoint with a masked-LM "
                            f"head; there is nothing to score it by")
        self.model, tokenizer = Model(model.to(self.device)), Tokenizer.from_pretrained(args.run)
        files = [data_folder(args.data or "data") / TASKS[task].files["dev"]
                 for task in ("sst", "para", "sts")]
        lines = list(dict.fromkeys(text for task, path in zip(("sst", "para", "sts"), files)
                                   for example in read_course_file(path, TASKS[task])[:args.limit]
                                   for text in example.texts))
        text, numbers = Corpus(tokenizer, lines, 128), torch.arange(len(lines))
        self.heldout = HeldOut(text, numbers, numbers, Masking(tokenizer))

    @property
    def fingerprint(self):
        return fingerprint(self.model, {}, str(self.heldout.tokens))

    def evaluate(self):
        began = time.perf_counter()
        scores = self.heldout.scores(self.model.masked_lm, None, self.device, self.autocast)
        return scores, None, time.perf_counter() - began

    def new_run(self, out, overwrite):
        raise UserError("--save saves a run; this is a checkpoint, of which only the loss is shown")

    def importance(self, matrices):
        raise UserError("the method weighted asks a run's training data which rows matter; leave "
                        "it out for a checkpoint")
