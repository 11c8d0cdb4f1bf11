"""A pretraining run: its settings, model and data, and its folder: a checkpoint (config.json,
model.safetensors, vocab.txt …) with metrics.json (scores), pretrain.json (settings, text, …),
log.jsonl and loss.png (over the steps) and last/state.pt (to resume from)."""

import hashlib
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from bert import Bert, BertConfig, UserError
from bert.checkpoint import pretraining_heads
from bert.files import write_json
from common.cli import quoted
from common.device import pick_device, pick_precision
from common.flags import check, flag_of, setting
from common.log import SUMS
from common.plots import draw_curves
from common.run_folder import clear, read_record, versions
from common.tables import text_table
from pretraining.corpus import BucketBatchSampler, Corpus, is_held_out, read_text, train_tokenizer
from pretraining.masking import HeldOut, Masking
from pretraining.model import HEAD, MaskedLM, load_head, open_checkpoint

KIND, RECORD, VERSION = "pretraining run", "pretrain.json", 2
RECORD_FIELDS = {"settings": dict[str, bool | int | float | str], "complete": bool,
                 "data": {"lines": int, "tokens": int, "sha256": str}}
STATE_FILE = Path("last", "state.pt")
STATE = {"step": range(2 ** 40), "seconds": float, "sums?": SUMS,        # beside save_state's own
         "skipped?": range(2 ** 40)}
FILES = (STATE_FILE, "config.json", "model.safetensors", "metrics.json", "log.jsonl", "loss.png",
         "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass
class Settings:
    text: str = setting("", "folder of .txt files, or one file: a sentence or passage a line")
    out: str = setting("", "folder of the new checkpoint")
    overwrite: bool = setting(False, "replace the pretraining run that is in --out")
    init: str = setting("", "start from this checkpoint: its weights, head and vocabulary")
    teacher: str = setting("", "a larger BERT, whose sentence vectors the model learns to match")
    teacher_weight: float = setting(5.0, "weight of the teacher's loss in the sum", min=0)
    whole_word: bool = setting(False, "mask all pieces of a word together")
    hidden: int = setting(128, "width of the hidden states", min=1, group="new model")
    layers: int = setting(4, "number of layers", min=1, group="new model")
    heads: int = setting(4, "attention heads in each layer", min=1, group="new model")
    intermediate: int = setting(512, "width of the feed-forward network", min=1, group="new model")
    max_positions: int = setting(128, "longest sequence, in tokens", min=8, group="new model")
    dropout: float = setting(0.1, "dropout, of attention too", min=0, max=1, group="new model")
    vocab_size: int = setting(6000, "size of the new vocabulary", min=10, group="new model")
    max_length: int = setting(128, "tokens of a line; longer lines are truncated", min=8)
    batch_tokens: int = setting(4096, "tokens in a batch, padding not counted", min=8)
    heldout: float = setting(0.02, "fraction of the lines that is never trained on", min=0, max=1)
    epochs: int = setting(10, "passes over the text", min=1)
    steps: int = setting(0, "number of steps, instead of --epochs (0: use --epochs)", min=0)
    lr: float = setting(1e-3, "highest learning rate", min=0)
    warmup: float = setting(0.1, "fraction of the steps with a rising learning rate", min=0, max=1)
    weight_decay: float = setting(0.01, "AdamW's weight decay, of matrices only", min=0)
    clip: float = setting(1.0, "largest norm of the gradient (0: no limit)", min=0)
    seed: int = setting(0, "seed of weights, masks, dropout and the order of lines", min=0)
    eval_every: int = setting(0, "steps between evaluations (0: an epoch)", min=0)
    save_every: int = setting(500, "steps between states to --resume from", min=1)
    skip_nonfinite: bool = setting(False, "leave out an update whose loss or gradient is not "
                                          "finite and count it, instead of stopping")
    device: str = setting("auto", "auto: CUDA if there is one", choices=("auto", "cuda", "cpu"))
    precision: str = setting("auto", "auto: bf16 on CUDA, or if the processor has AMX and the "
                                     "model is not tiny", choices=("auto", "fp32", "bf16"))

    def __post_init__(self):
        check(self)
        if not self.text or not self.out:
            raise UserError("--text and --out are needed (or --resume FOLDER); see --help")
        positions = math.inf if self.init else self.max_positions
        for flag, limit in (("--batch-tokens", self.batch_tokens), ("--max-positions", positions)):
            if self.max_length > limit:
                raise UserError(f"--max-length {self.max_length} is more than {flag} {limit}; "
                                f"lower the first or raise the second")
        shape = [flag_of(f) for f in fields(self)
                 if f.metadata["group"] == "new model" and getattr(self, f.name) != f.default]
        if self.init and shape:
            raise UserError(f"--init has its own shape and vocabulary; leave out {shape[0]}")


class Components:
    """The model, tokenizer and data of a run. start: the checkpoint, or "" for a new model."""

    def __init__(self, settings, start):
        self.device = pick_device(settings.device)
        lines = read_text(settings.text)
        held_out = torch.tensor([is_held_out(line, settings.heldout) for line in lines])
        torch.manual_seed(settings.seed)                     # of new weights
        if start:
            (self.tokenizer, bert), heads = open_checkpoint(start), pretraining_heads(start)
        else:
            trained = [line for line, held in zip(lines, held_out) if not held]
            self.tokenizer = train_tokenizer(trained, settings.vocab_size, settings.max_positions)
            bert, heads = Bert(BertConfig(
                self.tokenizer.vocab_size, settings.hidden, settings.layers, settings.heads,
                settings.intermediate, hidden_dropout_prob=settings.dropout,
                attention_probs_dropout_prob=settings.dropout,
                max_position_embeddings=settings.max_positions)), {}
        self.teacher = open_checkpoint(settings.teacher) if settings.teacher else None
        _, self.autocast = pick_precision(settings.precision, self.device, bert.config.hidden_size)
        self.model = MaskedLM(bert, self.teacher[1].config.hidden_size if self.teacher else None)
        if not load_head(self.model.head, heads, start) and start:
            print(f"{start} has no masked-LM head; a new one begins")
        self.other_heads = {name: t for name, t in heads.items() if not name.startswith(HEAD)}
        self.masking = Masking(self.tokenizer, settings.whole_word)
        self.corpus = Corpus(self.tokenizer, lines, settings.max_length)
        self.tokenizer.check_fits(bert.config, start, joint_pairs=bool(self.corpus.types.any()))
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
    clear(folder, FILES)                                     # the state first: a crash never pairs
    write_json(folder / RECORD, record)                      # it with another run's settings
    parts.tokenizer.save_pretrained(folder)
    return record


def open_run(folder, changes):
    """→ the record of the run in a folder, its Settings with `changes` {name: value}."""
    if set(changes) - {"device", "save_every", "skip_nonfinite"}:
        raise UserError("--resume goes on by the run's own settings; leave out all flags but "
                        "--device, --save-every and --skip-nonfinite, or start a new run with "
                        "--init")
    record = read_record(folder / RECORD, KIND, VERSION, RECORD_FIELDS)
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
          f"next: python train_multitask.py --bert {quoted(folder)}")
