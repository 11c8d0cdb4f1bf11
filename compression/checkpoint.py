"""A checkpoint with a masked-LM head, scored by its masked-LM loss as in the papers."""

from pathlib import Path

import torch

from bert import Bert, Tokenizer, UserError
from bert.checkpoint import pretraining_heads
from common.device import pick_device
from multitask.course import read_course_file
from multitask.metrics import COURSE
from multitask.tasks import TASKS
from pretraining.__main__ import HeldOut, load_head
from pretraining.corpus import Corpus
from pretraining.masking import MaskedLM, Masking


class CheckpointSession:
    """Has the attributes of multitask.session.RunSession that compression reads. Its scores are
    those of the masked LM on the texts of the course's dev files."""

    def __init__(self, args):
        self.precision = args.precision or "fp32"
        self.device, self.autocast = pick_device(args.device, self.precision)
        self.model = MaskedLM(Bert.from_pretrained(args.run)).to(self.device)
        if not load_head(self.model.head, pretraining_heads(args.run), args.run):
            raise UserError(f"{args.run} is neither a saved run nor a checkpoint with a masked-LM "
                            f"head; there is nothing to score it by")
        tokenizer, data = Tokenizer.from_pretrained(args.run), Path(args.data or "data")
        examples = [example for task in COURSE for example in read_course_file(
            data / TASKS[task].files["dev"], TASKS[task])[:args.limit]]
        lines = list(dict.fromkeys(text for example in examples for text in example.texts))
        corpus, line_ids = Corpus(tokenizer, lines, 128), torch.arange(len(lines))
        self.heldout = HeldOut(corpus, line_ids, line_ids, Masking(tokenizer))
        self.first_splits = {}

    def evaluate(self):
        """→ scores, predictions, seconds: as RunSession.evaluate, but only the scores are given"""
        return self.heldout.scores(self.model, None, self.device, self.autocast), None, None
