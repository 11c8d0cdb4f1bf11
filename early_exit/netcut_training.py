"""Train a run with a head after every layer, find its depth, and cut it there (NetCut)."""

import math
import time
from pathlib import Path

import torch
from torch import nn

from bert import UserError
from common.cli import StopSignal, UserStop, add_run_flags, quoted
from common.finite import FiniteCheck
from common.log import progress_bar
from common.optimization import (
    OPTIMIZERS,
    check_all_trained,
    parameter_groups,
    warmup_then_decay,
)
from common.plots import draw_curves
from common.run_folder import check_optimizer, read_state, restore, rng_state, save_state
from common.tables import rows_table
from early_exit.netcut import DepthHeads, netcut_loss
from multitask.evaluation import load_split
from multitask.report import score_table
from multitask.schedule import POSITION, BatchSampler, default_lr
from multitask.session import RunSession
from multitask.tasks import TASKS
from pruning.removal import check_removable, remove_layers

FLAGS = {        # name → (default, limit that it must be below, help); all are numbers of 0 or more
    "beta": (0.01, math.inf, "cost of a layer, in nats: the loss has β·k for layer k (default: "
                             "0.01)"),
    "epochs": (3.0, math.inf, "passes over the longest task (default: 3)"),
    "lr": (0.0, math.inf, "highest learning rate of the encoder (0: as in train_multitask.py)"),
    "depth-lr": (0.05, math.inf, "learning rate of the layers' weights (default: 0.05)"),
    "depth-warmup": (0.3, 1, "fraction of the steps in which all layers keep the same weight "
                             "(default: 0.3)"),
    "examples": (0, 2 ** 32, "only the first N training examples of each task (0: all)"),
    "seed": (0, 2 ** 32, "of dropout and of the order of the examples"),
}
STATE = {"step": range(2 ** 40), "depth_optimizer": {"state": dict, "param_groups": list[dict]},
         "curve": list[tuple[int, list[float]]], "flags": dict[str, str],    # beside save_state's
         "batches": dict[str, POSITION]}
RESUMED = "beta", "epochs", "lr", "depth_lr", "depth_warmup", "examples", "seed", "run"


def add_flags(parser):
    add_run_flags(parser, "run", "--data", "--device", "--precision", "--overwrite")
    parser.add_argument("--out", required=True, metavar="SHALLOW", help="the new run")
    for name, (default, _, text) in FLAGS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, metavar="N",
                            help=text)


def check(args, model):
    """UserError if a flag is impossible, or if layers of this model cannot be removed."""
    for name, (_, limit, _) in FLAGS.items():
        value = getattr(args, name.replace("-", "_"))
        if not 0 <= value < limit:
            raise UserError(f"--{name} is {value}; it must be 0 or more"
                            + (f" and below {limit:g}" if limit < math.inf else ""))
    if args.epochs == 0:
        raise UserError("--epochs is 0; the heads of the lower layers need training")
    others = [task for task in model.heads if TASKS[task].is_regression]
    if others:
        raise UserError(f"{', '.join(others)} is a regression, and NetCut mixes probabilities of "
                        f"classes; train a run without it first (--tasks)")
    check_removable(model.bert, "layers")


def netcut(args):
    """Find the depth of a run by gradient and cut the run there.

    Encoder and a head after every layer are trained further, with a weight for each layer; the
    layers above the one of the largest weight are removed. A stopped command resumes when it is
    called again. Ends with a table and a picture of the weights."""
    session, curve = RunSession(args), []
    check(args, session.model)
    state_file = Path(f"{Path(args.out)}.netcut")            # beside the run, until it is complete

    def edit(session):
        heads = DepthHeads(session.model).to(session.device)
        began = time.perf_counter()
        curve.extend(train(session, heads, args, state_file))
        alpha = heads.alpha.tolist()
        cut(session.model, heads, {"beta": args.beta, "alpha": alpha,
                                   "seconds": round(time.perf_counter() - began, 1)})
        print(f"{depth_table(alpha)}\n")

    folder, scores = session.derive(args.out, args.overwrite, edit)
    state_file.unlink(missing_ok=True)
    draw_curves([("weight α of each layer's head", {
        f"layer {k}": [(step, alpha[k]) for step, alpha in curve]
        for k in range(len(curve[0][1]))})], folder / "early_exit" / "netcut.png")
    print(f"{score_table(scores)}\n\nrun: {folder}   weights: {folder}/early_exit/netcut.png\n"
          f"next: python evaluate.py {quoted(folder)}")


def depth_table(alpha):
    """The weights as text, and whether one head alone was chosen."""
    largest, depth = max(alpha), alpha.index(max(alpha)) + 1
    rows = [{"layers": str(k), "α": a} for k, a in enumerate(alpha, 1)]
    verdict = ("one head was chosen" if largest > 0.99 else "several heads have weight"
               + ("" if largest > 0.5 else
                  ", and none has half: train longer, or raise --depth-lr"))
    return f"{rows_table(rows)}\n\n{depth} of {len(alpha)} layers stay; {verdict}"


def cut(model, heads, record):
    """Remove the layers above the head of the largest weight, which becomes the task's head. The
    run's edit is pruning's own, with `record` in it."""
    depth, layers = int(heads.w.argmax()) + 1, len(model.bert.layers)
    if depth < layers:
        remove_layers(model.bert, range(depth, layers))
    else:
        model.bert.edits = [*model.bert.edits, {"method": "pruning", "kind": "remove_layers",
                                                "layers": []}]
    model.bert.edits[-1]["netcut"] = record
    for task, of_layers in heads.heads.items():
        model.heads[task] = of_layers[depth - 1]


def train(session, heads, args, state_file):
    """Train encoder, heads and weights, on from the state file if there is one → [(step, α)]"""
    model, settings = session.model, session.settings
    splits = {task: load_split(task, "train", settings.data, session.tokenizer, settings,
                               args.examples or settings.limit) for task in model.heads}
    batches = {task: BatchSampler(len(split), settings.batch_size, args.seed)
               for task, split in splits.items()}
    steps = max(1, round(args.epochs * max(map(len, batches.values()))))
    torch.manual_seed(args.seed)
    model.bert.requires_grad_(True)
    model.bert.pooler.requires_grad_(settings.pooling == "pooler")
    trained = nn.ModuleDict({"bert": model.bert, "poolings": model.poolings, "heads": heads.heads})
    both = {"model": nn.ModuleDict({"trained": trained, "heads": heads}),
            "optimizer": optimizer_of(trained, settings, args.lr or default_lr(model, settings))}
    of_depth = torch.optim.Adam([heads.w], lr=args.depth_lr)
    curve, first = [], 1
    finite = FiniteCheck(both["model"])
    if (state := read_state(state_file, STATE)) is not None:
        first, curve = resume(state, args, both, of_depth, batches, session.device, state_file)

    def save(step):
        finite.before_save()
        save_state(state_file, **both, rng_states=[rng_state(session.device)], step=step,
                   depth_optimizer=of_depth.state_dict(), curve=curve, flags=flags_of(args),
                   batches={task: b.state_dict() for task, b in batches.items()})

    with StopSignal() as stop, progress_bar("netcut", steps, "step", first - 1) as bar:
        for step in range(first, steps + 1):
            model.train()
            for group in both["optimizer"].param_groups:
                group["lr"] = group["max_lr"] * warmup_then_decay(step, steps, settings.warmup)
            for task, split in splits.items():
                indices = next(batches[task])
                loss = loss_of(session, heads, task, split.batch(indices), args.beta)
                if step == first:
                    check_all_trained(loss, [both["optimizer"], of_depth], model)
                finite.add(loss, f"the loss of {task}", [split.ids[i] for i in indices])
                loss.backward()
            finite.add(nn.utils.clip_grad_norm_(
                [p for p in trained.parameters() if p.requires_grad], settings.clip or math.inf),
                "the gradient")
            finite.update(both["optimizer"], step)
            if step > args.depth_warmup * steps:
                of_depth.step()
            trained.zero_grad()
            of_depth.zero_grad()
            bar.update()
            if step % 10 == 0 or step == steps:
                finite.read()
                curve.append((step, heads.alpha.tolist()))
            if (stop.asked or step % 500 == 0) and step < steps:
                save(step)
            if stop.asked and step < steps:
                raise UserStop(f"stopped after step {step} of {steps}; the same command goes on "
                               f"from {state_file}")
    model.eval()
    return curve


def loss_of(session, heads, task, batch, beta):
    """The loss of one batch of a task."""
    batch = batch.to(session.device)
    with session.autocast():
        log_probs = heads(session.model, task, batch)
    return netcut_loss(log_probs, batch.labels, heads.alpha, beta)


def optimizer_of(trained, settings, lr):
    """The run's optimizer: the encoder at `lr`, the heads at the run's --head-lr."""
    return OPTIMIZERS[settings.optimizer](parameter_groups(
        [(module, {"max_lr": lr if name == "bert" else settings.head_lr})
         for name, module in trained.items()], settings.weight_decay))


def flags_of(args):
    return {name: str(getattr(args, name)) for name in RESUMED}


def resume(state, args, both, of_depth, batches, device, state_file):
    """Load a saved state → the next step, the curve so far. UserError if flags differ."""
    if state["flags"] != flags_of(args):
        changed = [f"--{name.replace('_', '-')} {value}" for name, value in state["flags"].items()
                   if flags_of(args).get(name) != value]
        raise UserError(f"{state_file} is of a stopped command with {', '.join(changed)}; give the "
                        f"same, or remove that file to start anew")
    restore(state, both["model"], both["optimizer"], device)
    try:
        check_optimizer(of_depth, state["depth_optimizer"])
        of_depth.load_state_dict(state["depth_optimizer"])
        for task, sampler in batches.items():
            sampler.load_state_dict(state["batches"][task])
    except (ValueError, LookupError, AttributeError) as error:
        raise UserError(f"{state_file} does not fit the run ({error}); remove it to start anew"
                        ) from error
    return state["step"] + 1, state["curve"]
