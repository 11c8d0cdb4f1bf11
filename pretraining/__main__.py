"""Pretrain a BERT on plain text: it learns to guess hidden words, as in Devlin et al. 2019.

    python -m pretraining --text FOLDER --out mine                 a new model and vocabulary
    python -m pretraining --text FOLDER --out mine --teacher bert-base-uncased
    python -m pretraining --text FOLDER --out more --init mine     go on with any checkpoint
    python -m pretraining --resume mine                            go on with a stopped run

The text is a folder of .txt files (or one file), one sentence or passage a line. 15 % of the tokens
are chosen; of these 80 % become [MASK], 10 % another token, 10 % stay; the model is to name what
stood there. A part of the lines (--heldout) is never trained on. How well their hidden tokens are
guessed is the score, beside that of always guessing the commonest token.

With --teacher the model also learns where a larger BERT puts each line: their sentence vectors
(means of the last hidden states) are to point the same way.

--out is itself a checkpoint: config.json, model.safetensors with the masked-LM head, vocab.txt.
It opens in Bert.from_pretrained, train_multitask.py --bert, and transformers' BertForMaskedLM.
"""

import argparse
import hashlib
import json
import math
import platform
import shutil
import time
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch
import torch.nn.functional as F
from torch import nn

from bert.checkpoint import check_names_and_shapes, pretraining_heads, tensors_to_save
from bert.config import BertConfig
from bert.errors import UserError
from bert.files import write_json, write_tensors
from bert.model import Bert
from bert.tokenizer import Tokenizer
from common.cli import Parser, StopSignal, UserStop, run_script
from common.device import pick_device
from common.flags import add_flags, check, flag_of, setting, with_absolute_paths
from common.log import Log, progress_bar
from common.optimization import adamw, parameter_groups, warmup_then_decay
from common.plots import draw_curves
from common.train_state import read_state, restore, rng_state, save_state
from pretraining.corpus import (
    BucketBatchSampler,
    Corpus,
    is_held_out,
    read_text,
    split_by_tokens,
    train_tokenizer,
)
from pretraining.distillation import READ_TOKENS, compute_targets, sentence_vectors, teacher_loss
from pretraining.masking import MaskedLM, Masking, masked_batch

STATE_FILE = Path("last", "state.pt")      # in the run: the state to resume from
LOG_EVERY = 10                       # steps between two looks at the losses
FILES = ("config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json",
         "special_tokens_map.json", "metrics.json", "log.jsonl", "loss.png")     # of a run
HEAD = "cls.predictions."            # before the masked-LM head's names in a checkpoint


# ------------------------------------------------------------------------------------- settings


@dataclass
class Settings:
    text: str = setting("", "folder of .txt files, or one file: a sentence or passage a line")
    out: str = setting("", "folder of the new checkpoint")
    overwrite: bool = setting(False, "replace the pretraining run that is in --out")
    init: str = setting("", "go on with this checkpoint: its weights, head and vocabulary")
    teacher: str = setting("", "a larger BERT whose sentence vectors are to be matched")
    teacher_weight: float = setting(5.0, "of the teacher's loss beside the masked LM's", min=0)
    whole_word: bool = setting(False, "hide all pieces of a word together")
    hidden: int = setting(128, "width of the hidden states", min=1, shape=True)
    layers: int = setting(4, "layers", min=1, shape=True)
    heads: int = setting(4, "attention heads of a layer", min=1, shape=True)
    intermediate: int = setting(512, "width inside the feed-forward network", min=1, shape=True)
    max_positions: int = setting(128, "longest sequence, in tokens", min=8, shape=True)
    dropout: float = setting(0.1, "dropout, of attention too", min=0, shape=True)
    vocab_size: int = setting(6000, "size of the vocabulary to be trained", min=10, shape=True)
    tokens: int = setting(128, "longer lines are cut to this many tokens", min=8)
    batch_tokens: int = setting(4096, "tokens in a batch, padding not counted", min=8)
    heldout: float = setting(0.02, "fraction of the lines that is never trained on", min=0)
    epochs: int = setting(10, "passes over the text", min=1)
    steps: int = setting(0, "stop after this many steps instead (0: go by --epochs)", min=0)
    lr: float = setting(1e-3, "highest learning rate", min=0)
    warmup: float = setting(0.1, "fraction of the steps in which the learning rate rises", min=0)
    weight_decay: float = setting(0.01, "AdamW's, on matrices only", min=0)
    clip: float = setting(1.0, "largest norm of the gradient (0: any)", min=0)
    seed: int = setting(0, "of weights, masks, dropout and the order of lines", min=0)
    eval_every: int = setting(0, "steps between evaluations (0: each pass)", min=0)
    save_every: int = setting(500, "steps between states to --resume from", min=1)
    half: bool = setting(False, "store the weights as float16: half the file")
    device: str = setting("auto", "auto takes CUDA where there is one",
                          choices=("auto", "cuda", "cpu"))
    precision: str = setting("auto", "auto: bf16 on CUDA, else fp32; weights stay fp32",
                             choices=("auto", "fp32", "bf16"))
    threads: int = setting(0, "CPU threads (0: torch's choice)", min=0)

    def __post_init__(self):
        check(self)
        if not self.text or not self.out:
            raise UserError("--text and --out are needed: the text to learn from, and the folder "
                            "of the new checkpoint (or --resume FOLDER); see --help")
        if self.warmup > 1 or self.dropout >= 1 or not 0 < self.heldout < 1:
            raise UserError("--warmup must be at most 1, --dropout below 1, and --heldout "
                            "between 0 and 1")
        if self.tokens > self.batch_tokens:
            raise UserError(f"--batch-tokens {self.batch_tokens} is less than --tokens "
                            f"{self.tokens}; a line must fit into a batch")
        if not self.init and self.tokens > self.max_positions:
            raise UserError(f"--tokens {self.tokens} is more than --max-positions "
                            f"{self.max_positions}; lower the first or raise the second")


# ------------------------------------------------------------------------------------- the model


def new_bert(settings, vocab_size):
    return Bert(BertConfig(
        vocab_size=vocab_size, hidden_size=settings.hidden, num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads, intermediate_size=settings.intermediate,
        hidden_dropout_prob=settings.dropout, attention_probs_dropout_prob=settings.dropout,
        max_position_embeddings=settings.max_positions))


def open_checkpoint(name):
    """→ tokenizer, encoder of a checkpoint; UserError where they do not fit together."""
    tokenizer, bert = Tokenizer.from_pretrained(name), Bert.from_pretrained(name)
    if tokenizer.vocab_size > bert.config.vocab_size:
        raise UserError(f"the tokenizer of {name} knows {tokenizer.vocab_size:,} tokens but the "
                        f"encoder embeds only {bert.config.vocab_size:,}; they do not fit together")
    return tokenizer, bert


def load_head(head, found, start):
    """Give the head the weights in `found` → whether there were any. The decoder is not among them:
    it is the word embeddings."""
    own = {name.removeprefix(HEAD): tensor for name, tensor in found.items()
           if name.startswith(HEAD) and not name.startswith(HEAD + "decoder.")}
    if own:
        check_names_and_shapes(f"the masked-LM head of {start}", head.state_dict(), own)
        head.load_state_dict(own)
    return bool(own)


# ------------------------------------------------------------------------------- how good is it?


class HeldOut:
    """The lines that are never trained on, their tokens hidden once and for all."""

    def __init__(self, text, lines, training, masking):
        generator = torch.Generator().manual_seed(0)
        order = lines[text.length[lines].argsort(stable=True)]
        self.text = text
        self.batches = [masked_batch(text, batch, masking, generator)
                        for batch in split_by_tokens(order, text.length, READ_TOKENS)]
        labels = torch.cat([batch.labels for batch in self.batches])
        self.tokens, self.lines = len(labels), len(lines)
        counts = torch.bincount(text.collate(training)[0], minlength=len(masking.special))
        commonest = counts.masked_fill(masking.special, 0).argmax()
        self.commonest = float((labels == commonest).double().mean())

    @torch.inference_mode()
    def scores(self, model, teacher, device, autocast):
        """{name: value}: loss and accuracy on the hidden tokens; with a teacher's Goal also how
        near the student comes to it."""
        model.eval()
        loss = right = 0.0
        for batch in self.batches:
            batch = batch.to(device)
            with autocast():
                logits, _ = model(batch.ids, batch.types, batch.layout, batch.output_rows)
            loss += float(F.cross_entropy(logits.float(), batch.labels, reduction="sum"))
            right += int((logits.argmax(dim=1) == batch.labels).sum())
        scores = {"masked_lm_loss": loss / self.tokens, "masked_accuracy": right / self.tokens,
                  "commonest_token_accuracy": self.commonest}
        if teacher is not None:
            scores |= self.teacher_agreement(model, teacher, device, autocast)
        return scores

    def teacher_agreement(self, model, teacher, device, autocast):
        """On the text as it is: mean cosines with the teacher's vectors for lines of one text, and
        for pairs the correlation of the two's opinions how alike the texts are."""
        cosines, opinions = [], []
        for batch in self.batches:
            ids, types, _ = self.text.collate(batch.lines)
            layout, goal = batch.layout.to(device), teacher.of(batch.lines, device)
            with autocast():
                _, hidden = model(ids.to(device), types.to(device), layout, batch.output_rows.to(device),
                                  every_row=True)
            guesses, pair_similarity = model.student(sentence_vectors(hidden.float(), layout))
            near = torch.stack([F.cosine_similarity(guess, goal.vectors) for guess in guesses])
            pair = ~goal.pair_similarity.isnan()
            cosines.append(near[:, ~pair])                                   # [2, B - pairs]
            opinions.append(torch.stack([pair_similarity[pair], goal.pair_similarity[pair]]))    # [2, pairs]
        mean, cls = torch.cat(cosines, dim=1).mean(dim=1).tolist()
        scores = {"teacher_cosine_mean": mean, "teacher_cosine_cls": cls}
        opinions = torch.cat(opinions, dim=1)
        if opinions.size(1) > 1:
            scores["teacher_pair_correlation"] = float(torch.corrcoef(opinions)[0, 1])
        return scores


# -------------------------------------------------------------------------------------- the loop


def losses_of(model, batch, teacher, autocast):
    """{name: loss} of a batch: the masked LM's, −mean log p(token), and the teacher's if any."""
    with autocast():
        logits, hidden = model(batch.ids, batch.types, batch.layout, batch.output_rows,
                               every_row=teacher is not None)
    losses = {"masked_lm": F.cross_entropy(logits.float(), batch.labels)}
    if teacher is not None:
        vectors = sentence_vectors(hidden.float(), batch.layout)             # two of [B, H]
        goal = teacher.of(batch.lines, hidden.device)
        losses["teacher"] = teacher_loss(model.student, vectors, goal)
    return losses


class Components(NamedTuple):
    """What a run is made of."""

    tokenizer: Tokenizer
    model: MaskedLM
    text: Corpus
    masking: Masking
    heldout: HeldOut
    batches: BucketBatchSampler
    teacher: tuple | None            # its tokenizer and encoder
    kept: dict                       # pretraining heads of --init that are not trained here
    data: dict                       # how much text, and its fingerprint


def prepare(settings, start):
    """Everything that can be wrong is found out here, before a file is written. `start` is the
    checkpoint to go on with, or nothing."""
    lines = read_text(settings.text)
    out = torch.tensor([is_held_out(line, settings.heldout) for line in lines])      # [lines]
    torch.manual_seed(settings.seed)                         # of new weights
    if start:
        (tokenizer, bert), heads = open_checkpoint(start), pretraining_heads(start)
    else:
        tokenizer = train_tokenizer([line for line, held in zip(lines, out) if not held],
                                    settings.vocab_size, settings.max_positions)
        bert, heads = new_bert(settings, tokenizer.vocab_size), {}
    teacher = open_checkpoint(settings.teacher) if settings.teacher else None
    model = MaskedLM(bert, teacher[1].config.hidden_size if teacher else None)
    if not load_head(model.head, heads, start) and start:
        print(f"{start} has no masked-LM head; a new one begins")
    masking, text = Masking(tokenizer, settings.whole_word), Corpus(tokenizer, lines, settings.tokens)
    useful = text.any_of(~masking.special)                   # [lines] has something to guess
    training, held = ((useful & side).nonzero().squeeze(1) for side in (~out, out))
    if not len(training) or not len(held):
        raise UserError(f"--text {settings.text}: of {len(lines):,} lines {len(training):,} are "
                        f"left to train on and {len(held):,} held out; both are needed: give more "
                        f"text, or change --heldout {settings.heldout:g}")
    heldout = HeldOut(text, held, training, masking)
    batches = BucketBatchSampler(training, text.length, settings.batch_tokens, settings.seed)
    kept = {name: tensor for name, tensor in heads.items() if not name.startswith(HEAD)}
    return Components(tokenizer, model, text, masking, heldout, batches, teacher, kept,
                 corpus_stats(lines, text, training, held))


def pretrain(settings, folder, record=None, state=None):
    """Train from the start, or on from `state`, and leave a whole checkpoint in `folder`."""
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    device, autocast = pick_device(settings.device, settings.precision)
    parts = prepare(settings, settings.init if state is None else folder)
    record = prepare_folder(folder, settings, parts, record)
    teacher = None if parts.teacher is None else compute_targets(
        *parts.teacher, parts.text.lines, folder / "teacher.safetensors", device)
    model, batches = parts.model.to(device), parts.batches
    optimizer = adamw(parameter_groups([(model, {"max_lr": settings.lr})],
                                       settings.weight_decay))
    steps = settings.steps or settings.epochs * batches.steps_per_epoch
    print(describe(parts, steps))
    torch.manual_seed(settings.seed)                         # of masks and dropout
    done, seconds = 0, 0.0
    if state is not None:
        restore(state, model, optimizer, device)
        done, seconds = state["step"], state["seconds"]
    log = Log(folder / "log.jsonl", done)
    began = time.perf_counter() - seconds

    def evaluate_and_save(step):
        scores = parts.heldout.scores(model, teacher, device, autocast)
        log.write(step=step, heldout=scores, seconds=round(time.perf_counter() - began, 1))
        save_checkpoint(folder, model, parts.kept, scores, settings.half)
        return score_line(step / batches.steps_per_epoch, scores)

    with StopSignal() as stop, progress_bar("pretrain", steps, "step", done) as bar:
        if state is None:
            bar.write(evaluate_and_save(0))
        for step in range(done + 1, steps + 1):
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = group["max_lr"] * warmup_then_decay(step, steps, settings.warmup)
            batch = masked_batch(parts.text, batches[step], parts.masking).to(device)
            losses = losses_of(model, batch, teacher, autocast)
            loss = losses["masked_lm"] + settings.teacher_weight * losses.get("teacher", 0.0)
            loss.backward()
            if settings.clip:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()

            bar.update()
            for name, value in losses.items():
                log.add("loss", name, value)
            if step % LOG_EVERY == 0 or step == steps:
                bar.set_postfix(log.write_means(step, time.perf_counter() - began), refresh=False)
            if step % (settings.eval_every or batches.steps_per_epoch) == 0 or step == steps:
                bar.write(evaluate_and_save(step))
            if step % settings.save_every == 0 or step == steps or stop.asked:
                save_state(folder / STATE_FILE, model, optimizer, [rng_state(device)], step=step,
                           seconds=time.perf_counter() - began)
            if stop.asked and step < steps:
                raise UserStop(f"stopped after step {step:,} of {steps:,}; go on with: "
                               f"python -m pretraining --resume {folder}")
    finish(folder, record, log, time.perf_counter() - began)


# ------------------------------------------------------------------------------------ the folder


def choose_folder(settings):
    """The new run's folder. Nothing is written yet: a mistake found later leaves no trace."""
    folder = Path(settings.out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; a checkpoint is a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "pretrain.json").is_file():
            raise UserError(f"--out {folder} holds files that are no pretraining run; they are "
                            f"left alone: choose another folder")
        if not settings.overwrite:
            raise UserError(f"--out {folder} is a pretraining run; --overwrite replaces it, "
                            f"--resume {folder} goes on with it")
        for flag, source in (("--init", settings.init), ("--teacher", settings.teacher)):
            if source and Path(source).expanduser().resolve() == folder.resolve():
                raise UserError(f"{flag} {source} and --out {folder} are the same folder; choose "
                                f"another --out")
    return folder


def prepare_folder(folder, settings, parts, record):
    """Check that a resumed run sees the same text, or begin a new run's folder → its record."""
    if record is not None:
        if record["data"] != parts.data:
            raise UserError(f"the text in {settings.text} is no longer that which the run "
                            f"{folder} began with, so it cannot go on; start a new run")
        return record
    record = {
        "settings": asdict(settings), "data": parts.data, "complete": False,
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "tokenizers": tokenizers.__version__, "threads": torch.get_num_threads()},
        "started": datetime.now().isoformat(timespec="seconds"), "seconds": None,
    }
    shutil.rmtree(folder / "last", ignore_errors=True)       # of the run that is replaced
    write_json(folder / "pretrain.json", record)
    for name in FILES + (() if settings.teacher else ("teacher.safetensors",)):
        (folder / name).unlink(missing_ok=True)
    parts.tokenizer.save_pretrained(folder)
    return record


def save_checkpoint(folder, model, kept, scores, half):
    """The encoder and its masked-LM head in the Hugging Face layout, and their scores."""
    tensors = {"bert." + name: tensor for name, tensor in tensors_to_save(model.bert).items()}
    tensors |= {HEAD + name: tensor for name, tensor in model.head.state_dict().items()} | kept
    if half:
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", model.bert.config.to_dict() | {
        "architectures": ["BertForMaskedLM"], "dtype": "float32"})      # what it opens as
    write_json(folder / "metrics.json", scores)


def read_run(folder):
    """→ pretrain.json's fields, its Settings."""
    path = folder / "pretrain.json"
    if not path.is_file():
        raise UserError(f"--resume {folder} is not a pretraining run: it has no pretrain.json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record, Settings(**record["settings"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged, or made by another version ({error!r})") from error


# ------------------------------------------------------------------------------------ the report


def corpus_stats(lines, text, training, held):
    """How much text there is: goes to pretrain.json, and tells whether it has changed."""
    return {"lines": len(lines), "words": sum(len(line.split()) for line in lines),
            "tokens": len(text.ids), "training_lines": len(training), "heldout_lines": len(held),
            "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def describe(parts, steps):
    """What is about to be trained, on what."""
    size, batches = parts.data, parts.batches
    weights = sum(p.numel() for part in (parts.model.bert, parts.model.head)
                  for p in part.parameters())
    return (f"text: {size['lines']:,} lines, {size['words']:,} words, {size['tokens']:,} tokens; "
            f"{size['heldout_lines']:,} lines held out\n"
            f"model: {weights:,} weights, a vocabulary of {parts.tokenizer.vocab_size:,}; guessing "
            f"blindly would cost {math.log(parts.tokenizer.vocab_size):.2f}\n"
            f"{steps:,} steps of {batches.tokens:,} tokens; a pass over the text takes "
            f"{batches.steps_per_epoch:,}")


def score_line(epoch, scores):
    """The scores of one evaluation in one line."""
    line = (f"pass {epoch:.4g}:  held-out loss {scores['masked_lm_loss']:.3f}  "
            f"accuracy {scores['masked_accuracy']:.1%} "
            f"(commonest token {scores['commonest_token_accuracy']:.1%})")
    if "teacher_cosine_mean" in scores:
        line += (f"  cosine with the teacher {scores['teacher_cosine_mean']:.3f} (mean) "
                 f"{scores['teacher_cosine_cls']:.3f} ([CLS])")
    if "teacher_pair_correlation" in scores:
        line += f"  pairs {scores['teacher_pair_correlation']:.3f}"
    return line


def draw_loss(lines, path):
    """Losses, and held-out scores, over the steps of log.jsonl's lines, as a picture."""
    losses, scores = {}, {}
    for line in lines:
        for name, loss in line.get("loss", {}).items():
            losses.setdefault(name, []).append((line["step"], loss))
        for name, score in line.get("heldout", {}).items():
            to = losses if name == "masked_lm_loss" else scores
            to.setdefault("held-out " + name.replace("_", " "), []).append((line["step"], score))
    draw_curves([("losses", losses), ("held-out lines", scores)], path)


def finish(folder, record, log, seconds):
    """Complete pretrain.json, draw the curves, print the table."""
    draw_loss(log.lines, folder / "loss.png")
    record |= {"complete": True, "seconds": round(seconds, 1)}
    write_json(folder / "pretrain.json", record)
    print(report(folder, record, log.lines))


def report(folder, record, lines):
    """The held-out scores before and after, and what to do next."""
    scores = [line["heldout"] for line in lines if "heldout" in line]
    rows = [f"{name.replace('_', ' '):26} {scores[0][name]:8.3f} {value:8.3f}"
            for name, value in scores[-1].items()]
    return (f"\n{'held-out lines':26} {'before':>8} {'after':>8}\n" + "\n".join(rows) +
            f"\n\n{record['seconds'] / 60:.1f} minutes   curves: {folder / 'loss.png'}\n"
            f"next: python train_multitask.py --bert {folder}")


# ------------------------------------------------------------------------------ the command line


def parse(arguments):
    """The flags that were given, and only those: {field of Settings, or "resume": value}."""
    parser = Parser(prog="python -m pretraining", description=__doc__)
    parser.add_argument("--resume", metavar="FOLDER", default=argparse.SUPPRESS,
                        help="go on with a stopped run, by its own settings")
    add_flags(parser, Settings)
    return vars(parser.parse_args(arguments))


def main(arguments=None):
    given = parse(arguments)
    resumed = given.pop("resume", None)
    if resumed is None:
        shape = [flag_of(f) for f in fields(Settings)
                 if f.metadata.get("shape") and f.name in given]
        if given.get("init") and shape:
            raise UserError(f"--init brings its own architecture and vocabulary, so {shape[0]} "
                            f"cannot stand beside it; leave out one or the other")
        settings = Settings(**given)
        folder = choose_folder(settings)
        return pretrain(with_absolute_paths(settings, "text", "init", "teacher"), folder)
    if set(given) - {"device", "save_every"}:
        raise UserError("--resume goes on by the run's own settings; only --device and "
                        "--save-every may stand beside it. To start from a checkpoint with others, "
                        "use --init")
    folder = Path(resumed).expanduser()
    record, settings = read_run(folder)
    state = read_state(folder / STATE_FILE)
    if record["complete"]:
        lines = Log(folder / "log.jsonl", math.inf).lines
        print(f"{folder} is complete: nothing is left to do\n{report(folder, record, lines)}")
        return None
    settings = replace(settings, **given)
    return pretrain(settings, folder, record if state else None, state)


if __name__ == "__main__":
    run_script(main)
