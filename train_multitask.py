"""Fine-tune one BERT on several tasks at once.

    python train_multitask.py                            # the tiny BERT on the sample in data/
    python train_multitask.py --bert bert-base-uncased --data path/to/cs224n
    python train_multitask.py --tasks sts --pairs separate --head cosine --out runs/sts
    python train_multitask.py --resume runs/sts          # go on with a run that was stopped

Data flow: files → ids → batches → encoder → head → loss → gradients → surgery → clip → L2 → step.
"""

import time
import warnings
from dataclasses import replace
from pathlib import Path

from bert import UserError
from bert.errors import check_known
from bert.files import write_json
from bert.r_softmax import measured_zeros
from common.cli import Parser, StopSignal, UserStop, run_script
from common.device import peak_memory
from common.flags import add_flags, command, with_absolute_paths
from common.log import progress_bar
from common.optimization import check_all_trained, clip_gradients
from common.run_folder import read_state, rng_state, save_state
from multitask import distributed, methods, runs
from multitask.compilation import compiled_layers
from multitask.evaluation import mean_losses, run_splits, score_outputs
from multitask.losses import further_losses
from multitask.metrics import choose_by, summary
from multitask.pcgrad import SURGERY, cosines, pop_grads, set_grads
from multitask.pictures import draw_training
from multitask.preparation import STATE, prepare
from multitask.recipes import RECIPES
from multitask.report import final_report, score_line

STATE_FILE = Path("last", "state.pt")                        # in the run: the state to resume from
SAMPLE = Path(__file__).resolve().parent / "data"            # the default of --data


def train(settings, folder, recipe="", record=None, state=None):
    """Train from the start, or on from `state`, and leave a whole run in `folder`."""
    run = prepare(settings, folder, recipe, record, state)
    model, optimizer, schedule, progress = run.model, run.optimizer, run.schedule, run.progress
    all_trained = [p for parameters in run.trained.values() for p in parameters]
    shared = [p for name, p in model.named_parameters()
              if p.requires_grad and model.part(name)[1] is None]
    one_group = len(run.trained) == 1 and not settings.l2    # l2 is not clipped
    began = time.perf_counter() - progress.seconds
    steps = range(progress.step + 1, schedule.steps + 1) if progress.running else ()
    writes = distributed.rank() == 0
    bar = progress_bar("train", schedule.steps, "step", progress.step, silent=not writes)
    with StopSignal() as stop, bar, compiled_layers(settings.compile):
        for step in steps:
            model.train()
            schedule.set_learning_rates(optimizer, step)
            schedule.set_ramps(model, step)
            tasks = schedule.tasks_of(step, progress.running)
            gradients = []                                   # of each task, for surgery
            for task in tasks:
                for indices, weight in distributed.shard_batch(next(schedule.batches[task]),
                                                               settings.accumulate):
                    add_gradients(run, task, indices, weight)
                if settings.surgery != "none":               # each task's gradients by themselves
                    gradients.append(pop_grads(shared))
                    distributed.all_reduce(gradients[-1])
            distributed.all_reduce([p.grad for p in all_trained])    # popped: None
            if gradients:
                combined, products = SURGERY[settings.surgery](gradients, settings.seed, step)
                set_grads(shared, combined)
                for pair, cosine in cosines(products, tasks).items():
                    run.log.add("cosine", pair, cosine)
                    run.log.add("conflict", pair, float(cosine < 0))
            for parameters in run.trained.values():          # groups share no parameters
                norm = clip_gradients(parameters, settings.clip, one_group and run.optimizer)
                run.finite.add(norm, f"the gradient of {', '.join(tasks)}")
            if settings.l2:
                add_l2(all_trained, settings.l2)
            run.finite.update(optimizer, step)
            optimizer.zero_grad()

            bar.update()
            progress.step, progress.seconds = step, time.perf_counter() - began
            if step % settings.log_every == 0 or step == schedule.steps:
                run.finite.read()
                bar.set_postfix(run.log.write_means(step, progress.seconds, distributed.total,
                                                    run.finite.skipped), refresh=False)
            epoch_ends = step % schedule.epoch_steps == 0 or step == schedule.steps
            if epoch_ends:
                evaluate_and_keep_best(run, bar)
            stopping = distributed.any_rank(stop.asked, step % settings.log_every == 0)
            if epoch_ends or stopping or (settings.save_every and step % settings.save_every == 0):
                save_progress(run)
            if not progress.running:
                break
            if stopping and step < schedule.steps:
                raise UserStop(f"stopped after step {step} of {schedule.steps}; go on with: "
                               f"{runs.resume_command(folder)}")
    if writes:
        finish(run)


def add_gradients(run, task, indices, weight):
    """Add to the gradients those of one batch of a task, the examples `indices`; `weight` is its
    part of the step."""
    batch = run.train[task].batch(indices).to(run.device)
    with run.autocast():
        vectors = run.model.vectors(task, batch)
        outputs = run.model.apply_head(task, vectors)
        further = further_losses(run.settings, run.model, task, batch, vectors, outputs)
        further |= methods.further_losses(run.settings, run.model, task, batch,
                                          run.progress.step / run.schedule.steps)
    terms = {"loss": run.settings.loss_of(task)(outputs, batch.labels)} | further
    zeros = measured_zeros(run.model.encoder(task))          # of r-softmax
    if zeros is not None:
        run.log.add("zeros", task, zeros * weight, weight)
    ids = [run.train[task].ids[i] for i in indices]
    for name, term in terms.items():
        run.log.add(name, task, term * weight, weight)
        run.finite.add(term, f"the {name} of {task}", ids)
    total = sum(terms.values()) * weight
    if task not in run.checked_tasks:
        check_all_trained(total, [run.optimizer], run.model)
        run.checked_tasks.add(task)
    total.backward()


def add_l2(parameters, strength):
    """Add the gradient of strength/2 · ‖w‖² to that of the loss, so that Adam scales both (weight
    decay bypasses Adam: Loshchilov & Hutter 2019)."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach(), alpha=strength)


def evaluate_and_keep_best(run, bar):
    """Evaluate; save each training group that improved; stop those that are done."""
    progress, groups = run.progress, run.schedule.groups
    run.finite.before_save()
    if distributed.rank() == 0:
        outputs = run_splits(run.model, run.dev, run.device, run.autocast)
        scores, predictions = score_outputs(run.dev, outputs)
        losses = mean_losses(run.dev, outputs, run.settings.loss_of)
        run.log.write(step=progress.step, dev=scores, dev_loss=losses,
                      seconds=round(progress.seconds, 1))
        may_keep = progress.step >= run.settings.keep_from * run.schedule.steps
        improved = []                                        # tasks whose model is to be saved
        for name in progress.running:
            value = choose_by(summary({task: scores[task] for task in groups[name]}))
            if not abs(value) < float("inf"):
                raise UserError(f"a dev score of step {progress.step} is not finite; lower --lr")
            if may_keep and value > progress.best.get(name, -float("inf")):
                progress.best[name], progress.best_step[name] = value, progress.step
                improved += groups[name]
        if improved and (len(groups) == 1 or not progress.scores):
            improved = list(run.dev)             # also tasks that are scored but not trained
        if improved:                             # progress.scores: of what the folder will hold
            saved = progress.scores | {task: scores[task] for task in improved}
            progress.scores = summary({task: saved[task] for task in run.dev})
            runs.save_best(run.folder, run.model, run.tokenizer, improved, progress.scores, run.dev,
                           predictions)
        bar.write(score_line(progress.step / run.schedule.epoch_steps, scores, improved))
    progress.best, progress.best_step = distributed.broadcast((progress.best, progress.best_step))
    patience = run.settings.patience * run.schedule.epoch_steps or float("inf")
    progress.running = [name for name in progress.running if progress.step < run.schedule.steps
                        and progress.step - progress.best_step.get(name, progress.step) < patience]


def save_progress(run):
    """Save the state that --resume goes on from."""
    run.finite.before_save()
    rng_states = distributed.gather(rng_state(run.device))
    sums = distributed.gather(run.log.sums_on_cpu())
    batches = {task: sampler.state_dict() for task, sampler in run.schedule.batches.items()}
    if distributed.rank() == 0:
        save_state(run.folder / STATE_FILE, run.model, run.optimizer, rng_states,
                   progress=vars(run.progress), batches=batches, sums=sums,
                   skipped=run.finite.skipped)


def finish(run):
    """Complete run.json, draw the curves, print the table."""
    draw_training(run.log.lines, run.folder / "curves.png")
    record, progress = run.record, run.progress
    record |= {"complete": True, "best_step": progress.best_step,
               "peak_bytes": peak_memory(run.device)}
    record["times"] |= {"train_seconds": round(progress.seconds, 3), "steps": progress.step}
    if run.finite.skipped:
        record["skipped"] = run.finite.skipped
        print(run.finite.summary(progress.step) + "\n")
    write_json(run.folder / "run.json", record)
    print(final_report(run.folder, record))


def parse(arguments):
    parser = Parser(description=__doc__, usage="python train_multitask.py [flags]")
    parser.add_argument("--resume", metavar="RUN", help="go on with a stopped run, as it was set")
    parser.add_argument("--recipe", metavar="NAME", default="", help="a published experiment's "
                        "settings; flags given beside it override them")
    parser.add_argument("--recipes", action="store_true", help="list the recipes")
    add_flags(parser, methods.settings_class())
    return vars(parser.parse_args(arguments))


def new_settings(given, recipe):
    """The settings of a recipe ("": of none) and the flags beside it. A flag that would have no
    effect is an error (--bert beside --from: a note); what the recipe sets in vain is left out."""
    class_ = methods.settings_class()
    if recipe:
        check_known(recipe, RECIPES, "recipe", where="--recipe")
    if {"bert", "from_run"} <= set(given):
        warnings.warn("--from brings its own encoder; --bert is not read", stacklevel=2)
        del given["bert"]
    if given.get("data") == class_.data:      # typed, it is ./data, not the sample
        given["data"] = f"./{class_.data}"
    settings = class_(**((RECIPES[recipe].settings if recipe else {}) | given))
    idle = settings.without_effect()
    for name, needed in idle.items():
        if name in given:
            raise UserError(f"--{name.replace('_', '-')} has no effect here: it needs {needed}; "
                            f"leave it out, or change that")
    return replace(settings, **{name: getattr(class_, name) for name in idle})


def main(arguments=None):
    given = parse(arguments)
    resumed, recipe, listed = (given.pop(name) for name in ("resume", "recipe", "recipes"))
    if listed:
        return print("\n".join(f"{name:21} {recipe.row or 'ours':25} {recipe.description}"
                               for name, recipe in RECIPES.items()))
    if resumed is not None:
        return resume(Path(resumed), given, recipe)
    settings = new_settings(given, recipe)
    with (distributed.processes(settings.device),
          distributed.on_first(runs.choose_folder(settings)) as folder):
        print(f"python train_multitask.py {command(settings)}\n")
        if settings.data == type(settings).data:
            settings = replace(settings, data=str(SAMPLE))
        return train(with_absolute_paths(settings, "bert", "data", "from_run"), folder, recipe)


def resume(folder, given, recipe):
    if recipe or set(given) - {"device", "save_every", "skip_nonfinite", "compile"}:
        raise UserError("--resume goes on by the run's own settings, beside which only --device, "
                        "--save-every, --compile and --skip-nonfinite may stand; --from starts "
                        "from a run with others")
    record, settings, unknown = runs.read_settings(folder)
    if record["complete"]:
        return print(f"{folder} is complete: nothing is left to do\n{final_report(folder, record)}")
    if not runs.is_trained(record):
        raise UserError(f"{folder} was never trained: the command that made it of "
                        f"{settings.from_run} was stopped; call that again, with --overwrite")
    if unknown:
        raise UserError(f"{folder} was begun with {', '.join(unknown)}, which this version does "
                        f"not know; resume it with the version that began it")
    settings = replace(settings, **given)
    with (distributed.processes(settings.device),
          distributed.on_first(runs.claim_saved(folder, record))):
        state = read_state(folder / STATE_FILE, STATE)    # None: killed before the first save
        train(settings, folder, record["recipe"], record if state else None, state)


if __name__ == "__main__":
    run_script(main)
