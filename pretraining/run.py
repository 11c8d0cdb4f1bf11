"""A pretraining run: its model and data, its folder, its report.

The folder is a checkpoint (config.json, model.safetensors, vocab.txt …) with metrics.json (scores),
pretrain.json (settings, text, versions), log.jsonl and loss.png (losses and scores over the steps)
and last/state.pt (the state to resume from)."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import torch

from bert import Bert, UserError
from bert.checkpoint import pretraining_heads
from bert.files import write_json
from common.device import pick_device
from common.plots import draw_curves
from common.run_folder import read_record, versions
from common.tables import text_table
from pretraining.corpus import BucketBatchSampler, Corpus, is_held_out, read_text, train_tokenizer
from pretraining.evaluation import HeldOut
from pretraining.masking import Masking
from pretraining.model import HEAD, MaskedLM, load_head, open_checkpoint
from pretraining.settings import Settings

KIND, RECORD, VERSION = "pretraining run", "pretrain.json", 2
STATE_FILE = Path("last", "state.pt")
FILES = (STATE_FILE, "config.json", "model.safetensors", "metrics.json", "log.jsonl", "loss.png",
         "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class Components:
    """The model, tokenizer and data of a run. UserError, before a file is written, if settings,
    text or checkpoints are wrong. start: the checkpoint to begin with, or "" for a new model."""

    def __init__(self, settings, start):
        self.device, self.autocast = pick_device(settings.device, settings.precision)
        lines = read_text(settings.text)
        held_out = torch.tensor([is_held_out(line, settings.heldout) for line in lines])
        torch.manual_seed(settings.seed)                     # of new weights
        if start:
            (self.tokenizer, bert), heads = open_checkpoint(start), pretraining_heads(start)
        else:
            trained = [line for line, held in zip(lines, held_out) if not held]
            self.tokenizer = train_tokenizer(trained, settings.vocab_size, settings.max_positions)
            bert, heads = Bert(settings.bert_config(self.tokenizer.vocab_size)), {}
        self.teacher = open_checkpoint(settings.teacher) if settings.teacher else None
        self.model = MaskedLM(bert, self.teacher[1].config.hidden_size if self.teacher else None)
        if not load_head(self.model.head, heads, start) and start:
            print(f"{start} has no masked-LM head; a new one begins")
        self.other_heads = {name: t for name, t in heads.items() if not name.startswith(HEAD)}
        self.masking = Masking(self.tokenizer, settings.whole_word)
        self.corpus = Corpus(self.tokenizer, lines, settings.max_length)
        line_of_token = torch.arange(len(lines)).repeat_interleave(self.corpus.length)
        usable = line_of_token[~self.masking.special[self.corpus.ids]].unique()  # lines with words
        training, heldout = usable[~held_out[usable]], usable[held_out[usable]]
        if not len(training) or not len(heldout):
            raise UserError(f"--text {settings.text}: {len(training):,} lines to train on, "
                            f"{len(heldout):,} held out; give more text or another --heldout")
        self.heldout = HeldOut(self.corpus, heldout, training, self.masking)
        self.batches = BucketBatchSampler(training, self.corpus.length, settings.batch_tokens,
                                          settings.seed)
        self.text_stats = {"lines": len(lines), "tokens": len(self.corpus.ids),
                           "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def start_record(folder, settings, parts):
    """Delete the files of a replaced run, write the vocabulary and the record → the record."""
    record = {"version": VERSION, "settings": asdict(settings), "data": parts.text_stats,
              "versions": versions(), "complete": False, "seconds": None}
    for name in FILES:                                       # the state first: a crash never pairs
        (folder / name).unlink(missing_ok=True)              # it with another run's settings
    write_json(folder / RECORD, record)
    parts.tokenizer.save_pretrained(folder)
    return record


def open_run(folder, changes):
    """→ the record of the run in a folder, its Settings with `changes` {name: value}."""
    if set(changes) - {"device", "save_every"}:
        raise UserError("--resume goes on by the run's own settings; leave out all flags but "
                        "--device and --save-every, or start a new run with --init")
    record = read_record(folder / RECORD, KIND, VERSION, ("settings", "data", "complete"))
    try:
        settings = Settings(**record["settings"])
    except (UserError, TypeError) as error:
        raise UserError(f"{folder / RECORD} is damaged: {error}") from error
    return record, replace(settings, **changes)


def finish(folder, record, log, seconds):
    """Draw the curves, complete the record, print scores before and after training."""
    scores = log.curves("heldout")
    rows = [(name.replace("_", " "), f"{points[0][1]:.3f}", f"{points[-1][1]:.3f}")
            for name, points in scores.items()]
    losses = log.curves("loss") | {"held-out masked_lm": scores.pop("masked_lm_loss")}
    draw_curves([("losses", losses), ("held-out lines", scores)], folder / "loss.png")
    write_json(folder / RECORD, record | {"complete": True, "seconds": round(seconds, 1)})
    print(f"\n{text_table([('held-out lines', 'before', 'after'), *rows])}\n\n"
          f"{seconds / 60:.1f} minutes   curves: {folder / 'loss.png'}\n"
          f"next: python train_multitask.py --bert {folder}")
