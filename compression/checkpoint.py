"""A checkpoint with a masked-LM head, scored by its masked-LM loss as in the papers."""

from pathlib import Path

import torch

from bert import UserError
from bert.checkpoint import pretraining_heads
from common.device import pick_device
from multitask.course import read_course_file
from multitask.metrics import COURSE
from multitask.tasks import TASKS
from pretraining.corpus import Corpus
from pretraining.masking import HeldOut, Masking
from pretraining.model import MaskedLM, load_head, open_checkpoint


class CheckpointSession:
    """Takes the place of a RunSession. evaluate() scores the masked LM on the texts of the course's
    dev files."""

    def __init__(self, args):
        self.first_splits, self.precision = {}, args.precision or "fp32"
        self.device, self.autocast = pick_device(args.device, self.precision)
        tokenizer, bert = open_checkpoint(args.run)
        self.model = MaskedLM(bert).to(self.device)
        if not load_head(self.model.head, pretraining_heads(args.run), args.run):
            raise UserError(f"{args.run} is neither a saved run nor a checkpoint with a masked-LM "
                            f"head; there is nothing to score it by")
        files = [(TASKS[task], Path(args.data or "data", TASKS[task].files["dev"]))
                 for task in COURSE]
        texts = dict.fromkeys(text for task, path in files for example in read_course_file(
            path, task)[:args.limit] for text in example.texts)
        corpus, line_ids = Corpus(tokenizer, list(texts), 128), torch.arange(len(texts))
        self.heldout = HeldOut(corpus, line_ids, line_ids, Masking(tokenizer))

    def evaluate(self):
        """→ scores, and None for predictions and seconds"""
        return self.heldout.scores(self.model, None, self.device, self.autocast), None, None
