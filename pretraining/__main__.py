"""Pretrain a BERT on plain text: it learns to predict masked tokens, as in Devlin et al. 2019.

    python -m pretraining --text FOLDER --out mine                 a new model and vocabulary
    python -m pretraining --text FOLDER --out mine --teacher bert-base-uncased
    python -m pretraining --text FOLDER --out more --init mine     start from any checkpoint
    python -m pretraining --resume mine                            resume a stopped run

The text is a folder of .txt files (or one file), one sentence or passage a line. 15 % of the tokens
are chosen; of these 80 % become [MASK], 10 % another token, 10 % stay; the model predicts the
original tokens. The score is its accuracy on a fraction of the lines (--heldout) that is never
trained on. With --teacher the model also learns a larger BERT's sentence vectors. The new
checkpoint opens in Bert.from_pretrained, train_multitask.py --bert and BertForMaskedLM.
"""

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

from bert import UserError
from common.cli import Parser, StopSignal, UserStop, quoted, run_script
from common.finite import FiniteCheck
from common.flags import add_flags, with_absolute_paths
from common.log import Log, progress_bar
from common.optimization import adamw, check_all_trained, parameter_groups, warmup_then_decay
from common.run_folder import claim, new_folder, read_state, restore, rng_state, save_state
from pretraining import run
from pretraining.distillation import compute_targets, sentence_vectors, teacher_loss
from pretraining.masking import masked_batch
from pretraining.model import save_checkpoint

LOG_EVERY = 10                       # steps over which the logged losses are averaged


def compute_losses(model, batch, targets, autocast):
    """→ {name: loss}: masked_lm = −mean log p(token), and the teacher's with TeacherTargets."""
    with autocast():
        logits, hidden = model(batch, all_rows=targets is not None)
    losses = {"masked_lm": F.cross_entropy(logits.float(), batch.labels)}
    if targets is not None:
        vectors = sentence_vectors(hidden.float(), batch.layout)         # mean, [CLS]: each [B, H]
        target = targets.select(batch.line_ids, hidden.device)
        losses["teacher"] = teacher_loss(model.distillation_head, vectors, target)
    return losses


def train(settings, folder, parts, state):
    """The training loop, from the first step, or the one after `state` → the log, the seconds."""
    targets = parts.teacher and compute_targets(*parts.teacher, parts.corpus.lines, parts.device)
    model, batches = parts.model.to(parts.device), parts.batches
    steps = settings.steps or settings.epochs * batches.steps_per_epoch
    optimizer = adamw(parameter_groups([(model, {"max_lr": settings.lr})], settings.weight_decay))
    torch.manual_seed(settings.seed)                         # of masks and dropout
    if state is not None:
        restore(state, model, optimizer, parts.device)
    done, seconds = (state["step"], state["seconds"]) if state else (0, 0.0)
    log = Log(folder / "log.jsonl", done, state and state.get("sums"), settings.skip_nonfinite)
    began, go_on = time.perf_counter() - seconds, f"python -m pretraining --resume {quoted(folder)}"
    finite = FiniteCheck(model, go_on, settings.skip_nonfinite, (state or {}).get("skipped", 0))

    def evaluate(step):
        finite.before_save()
        scores = parts.heldout.scores(model, targets, parts.device, parts.autocast)
        log.write(step=step, heldout=scores, seconds=round(time.perf_counter() - began, 1))
        bar.write(f"step {step:,}:  " + "  ".join(f"{name.replace('_', ' ')} {value:.3f}"
                                                  for name, value in scores.items()))
        return scores

    with StopSignal() as stop, progress_bar("pretrain", steps, "step", done) as bar:
        if state is None:
            save_checkpoint(folder, model, evaluate(0), parts.other_heads)
        for step in range(done + 1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = group["max_lr"] * warmup_then_decay(step, steps, settings.warmup)
            batch = masked_batch(parts.corpus, batches[step], parts.masking).to(parts.device)
            losses = compute_losses(model.train(), batch, targets, parts.autocast)
            loss = losses["masked_lm"] + settings.teacher_weight * losses.get("teacher", 0.0)
            if step == done + 1:
                check_all_trained(loss, [optimizer], model)
            loss.backward()
            norm = clip_grad_norm_(model.parameters(), settings.clip or math.inf)
            for name, value in (losses | {"gradient": norm}).items():
                finite.add(value, name, [f"line {n + 1}" for n in batch.line_ids.tolist()])
            finite.update(optimizer, step)
            optimizer.zero_grad()

            bar.update()
            for name, value in losses.items():
                log.add("loss", name, value)
            if step % LOG_EVERY == 0 or step == steps:
                finite.read()
                bar.set_postfix(log.write_means(step, time.perf_counter() - began,
                                                skipped=finite.skipped), refresh=False)
            if step % (settings.eval_every or batches.steps_per_epoch) == 0 or step == steps:
                save_checkpoint(folder, model, evaluate(step), parts.other_heads)
            if step % settings.save_every == 0 or step == steps or stop.asked:
                finite.before_save()
                save_state(folder / run.STATE_FILE, model, optimizer, [rng_state(parts.device)],
                           step=step, seconds=time.perf_counter() - began,
                           sums=log.sums_on_cpu(), skipped=finite.skipped)
            if stop.asked and step < steps:
                raise UserStop(f"stopped after step {step:,} of {steps:,}; go on with: {go_on}")
    if finite.skipped:
        print(finite.summary(steps))
    return log, time.perf_counter() - began


def main(arguments=None):
    parser = Parser(prog="python -m pretraining", description=__doc__)
    parser.add_argument("--resume", metavar="FOLDER", type=Path, help="go on with a stopped run")
    add_flags(parser, run.Settings)
    given = vars(parser.parse_args(arguments))               # only the flags that were given
    if resumed := given.pop("resume"):
        folder = resumed.expanduser()
        record, settings = run.open_run(folder, given)
        if record["complete"]:
            return print(f"{folder} is complete; its scores are in {folder / 'metrics.json'}")
        place = claim(folder, run.FILES)
    else:
        record, settings = None, with_absolute_paths(run.Settings(**given), "text", "init",
                                                     "teacher")
        place = new_folder(settings.out, run.RECORD, run.KIND, settings.overwrite,
                           "python -m pretraining --resume",
                           {"--init": settings.init, "--teacher": settings.teacher}, run.FILES)
    with place as folder:
        if record and record != run.open_run(folder, given)[0]:
            raise UserError(f"{folder} was changed by another process; resume it again")
        state = read_state(folder / run.STATE_FILE, run.STATE) if record else None
        parts = run.Components(settings, folder if state else settings.init)
        if state is None:                                    # new, or stopped before the first save
            record = run.start_record(folder, settings, parts)
        elif record["data"] != parts.text_stats:
            raise UserError(f"the text in {settings.text} is no longer that which the run {folder} "
                            f"began with; start a new run")
        return run.finish(folder, record, *train(settings, folder, parts, state))


if __name__ == "__main__":
    run_script(main)
