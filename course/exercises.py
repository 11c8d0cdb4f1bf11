"""The exercises: which functions a student writes, and what else would give the answer away.

The source of the project carries no markers: functions are found by their dotted names. Order is
that of student/EXERCISES.md, whose sections hold each exercise's text and equation.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STUDENT = Path(__file__).resolve().parent / "student"


class Exercise(NamedTuple):
    """`replaced` {dotted name: body} are functions whose code shows the answer. Their body in the
    handout may call the student's function; None leaves the function out. `forbidden` are library
    functions that are the answer; they raise while the exercise is graded."""

    points: int
    functions: tuple
    replaced: dict = {}
    forbidden: tuple = ()


R_SOFTMAX_ATTENTION = """\
from bert.attention import eager_attention

def probabilities(scores, dim):
    valid = True if key_mask is None else key_mask
    ramp = self.ramp if self.training else 1.0
    return r_softmax(scores, self.zeros, valid, ramp, self.detached)

return eager_attention(query, key, value, key_mask, dropout, layouts, probabilities)"""
EXERCISES = {
    "attention": Exercise(
        10, ("bert.attention.eager_attention",),
        {"bert.attention.sdpa_attention":
         "return eager_attention(query, key, value, key_mask, dropout, layouts)",
         "bert.attention.SelfAttention.attend_packed": "return None",
         "bert.cpu_attention.attend": None, "bert.cpu_attention.attend_backward": None,
         "bert.single_query.attend": None, "bert.single_query.fits": "return False",
         "bert.r_softmax.RSoftmaxAttention.forward": R_SOFTMAX_ATTENTION},
        ("torch.nn.functional.scaled_dot_product_attention",
         "torch._C._nn.scaled_dot_product_attention",
         "torch.nn.functional.multi_head_attention_forward")),
    "add-and-norm": Exercise(
        5, ("bert.model.BertLayer.attention_block", "bert.model.BertLayer.add_and_norm")),
    "ffn": Exercise(
        5, ("bert.model.FeedForward.forward", "bert.model.FeedForward.activate",
            "bert.model.FeedForward.project"),
        {f"experts.{name}": None for name in (
            "rules.expert_norms", "layers.masked", "layers.skipping",
            "layers.ExpertFeedForward.forward")}),
    "embeddings": Exercise(10, ("bert.model.Bert.embed",)),
    "adamw": Exercise(
        10, ("course.adamw.adamw_step",), {},
        ("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.adamw.adamw",
         "torch.optim.adam.adam", "torch._fused_adamw_", "torch._fused_adam_")),
    "masking": Exercise(
        10, ("pretraining.masking.Masking.choose", "pretraining.masking.Masking.__call__")),
    "lora": Exercise(
        10, ("lora.layers.LoRA.forward", "lora.layers.LoRA.delta", "lora.layers.LoRA.merge_into"),
        {"lora.layers.LoRAXS.forward": None, "lora.layers.LoRAXS.delta": None,
         "lora.layers.LoRAXS.merge_into": None, "lora.linear.LoRALinear.joins": "return False",
         "lora.together.AdaptedProduct.forward": None,
         "lora.together.AdaptedProduct.backward": None}),
    "low-rank": Exercise(
        10, ("laser.reduce.low_rank", *(f"laser.reduce.Decomposition.{name}" for name in (
            "__init__", "factors", "energy", "error"))),
        {"laser.reduce.Decomposition.product": None, "lora.layers.singular_factors": None,
         "compression.codecs.truncated_svd": None}),
    "pcgrad": Exercise(10, ("multitask.pcgrad.coefficients",)),
    "annealing": Exercise(
        5, ("multitask.schedule.annealing_exponent", "multitask.schedule.draw")),
    "importance": Exercise(10, ("pruning.gates.importance", "pruning.gates.normalize")),
    "head-removal": Exercise(
        10, ("pruning.removal.keep_rows", "pruning.removal.keep_columns",
             "pruning.removal.remove_heads")),
    "exit-ensemble": Exercise(
        5, ("early_exit.exits.geometric", "early_exit.exits.arithmetic")),
    "r-softmax": Exercise(
        10, ("bert.r_softmax.zero_count", "bert.r_softmax.threshold", "bert.r_softmax.r_softmax")),
}


def equation_of(exercise, function):
    """→ the lines of an exercise's equation that are for this function (dotted name): those after
    its label ("delta:  ΔW = …"), and those without a label. All, if none is."""
    labels = {dotted.rpartition(".")[2] for dotted in EXERCISES[exercise].functions}
    owner, kept, equation = None, [], sections()[exercise][2]
    for line in equation.splitlines():
        label = re.match(r"(\w+): ", line)
        if label and label[1] in labels:
            owner = label[1]
        elif not line.startswith(" "):
            owner = None
        kept += [line] if owner in (None, function.rpartition(".")[2]) else []
    return "\n".join(kept) or equation.rstrip()


def sections():
    """→ {exercise: (number, title, equation)} of student/EXERCISES.md"""
    text = (STUDENT / "EXERCISES.md").read_text(encoding="utf-8")
    parts = re.findall(r"^## (\d+)\. ([\w-]+): (.+?)\n.*?^```text\n(.*?)^```$", text,
                       re.MULTILINE | re.DOTALL)
    return {name: (int(number), title, equation) for number, name, title, equation in parts}
