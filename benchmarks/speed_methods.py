"""Parts of benchmarks/speed.py: what methods cost, beside peft and beside the same without them.
The modules imported inside functions need peft, which `speed.py --docs` does not."""

import copy

import torch

from benchmarks.bench import batches
from benchmarks.side_by_side import PeerSide, Side
from benchmarks.speed_report import speed_row, time_row
from laser import apply
from laser.shared_prefix import SharedPrefixEvaluator
from laser.sweep import grid, parse_layers
from multitask.evaluation import TOKENS

SIZE = 32


def lora(bench):
    from benchmarks import lora, pruning

    split, (full, _) = bench.split(), bench.models()
    adapted = lora.sides_of(bench.weights, split, copy.deepcopy(full))
    times = bench.in_turn({name: adapted[name].step for name in (lora.LORA, lora.PEFT)},
                          batches(split, SIZE), 25)
    yield speed_row("methods", "LoRA of rank 8, step of 32", times, SIZE, peer_name="peft")
    ours = Side(pruning.adapt(pruning.without(full, 44 / 144)), split)
    theirs = PeerSide(pruning.by_hand(full), split)
    times = bench.in_turn({"ours": ours.step, "theirs": theirs.step}, batches(split, SIZE), 25)
    yield speed_row("methods", "Prune-LoRA, 31 % of the heads gone, step of 32", times, SIZE,
                    peer_name="peft, pruned by hand")


def mixed(bench):
    from benchmarks import lora

    split, (full, _) = bench.split(), bench.models()
    adapted = lora.sides_of(bench.weights, split, full)
    for work, what in (("step", "training step"), ("infer", "inference")):
        times = bench.in_turn({name: getattr(adapted[name], work)
                               for name in (lora.MIX, lora.LORA)}, batches(split, SIZE), 8)
        yield time_row("cost", f"three adapters in a batch of 32, {what}", times,
                       peer_name="one adapter")


def pcgrad(bench):
    from benchmarks.surgery import SIZE as size
    from benchmarks.surgery import Bench

    surgery = Bench()

    def step(kind):
        return lambda batches: surgery.step(kind, batches)

    kinds = ("plain", "pcgrad", "pcgrad-tensor", "merged")
    times = bench.in_turn({kind: step(kind) for kind in kinds},
                          iter(surgery.next_batches, None), 30)
    names = {"pcgrad": "PCGrad, whole gradient", "pcgrad-tensor": "PCGrad, tensor by tensor",
             "merged": "no surgery, one pass for all tasks"}
    for kind, name in names.items():
        yield time_row("cost", f"{name}, three tasks of {size}",
                       {kind: times[kind], "plain": times["plain"]}, peer_name="three passes")


def sweep_shared(model, splits, stacks):
    """Outputs of all stacks, with shared prefixes and decompositions, as `laser sweep` does."""
    evaluator = SharedPrefixEvaluator(model)
    for task, split in splits.items():
        for examples in split.by_length(TOKENS):
            evaluator.outputs(task, split.batch(examples), stacks)


def sweep_apart(model, splits, stacks):
    """Edit the model and evaluate it whole, one stack after the other."""
    from benchmarks.laser import evaluate_whole

    for stack in stacks:
        undo = apply(model.bert, stack)
        evaluate_whole(model, splits)
        undo()


def laser(bench):
    torch.manual_seed(0)
    model, _ = bench.models()
    splits = bench.dev_splits(bench.pick(200, 20))
    layers = parse_layers("upper", len(model.bert.layers))
    stacks = [(i,) for i in grid(model.bert, layers, ("fc_in", "fc_out"), (0.5, 0.1))]
    times = bench.in_turn({"shared": lambda _: sweep_shared(model.eval(), splits, stacks),
                           "apart": lambda _: sweep_apart(model, splits, stacks)},
                          range(100), 45, warm=0, least=2)
    yield speed_row("methods", f"LASER, {len(stacks)} edited models", times, len(stacks),
                    unit="models/s", peer_name="plainbert, each evaluated whole",
                    note=f"{sum(map(len, splits.values())):,} dev examples, decompositions "
                         f"included")
