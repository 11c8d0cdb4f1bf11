"""Published experiments, each a set of values for the settings of multitask/settings.py; a flag
beside --recipe overrides it. Alappat: Extending Applications of Layer Selecting Rank Reduction;
Fuest & Tacke: Low Rank Adaptation for Multitask BERT (reports of CS224N). Wang et al. 2023:
Task-oriented Memory-efficient Pruning-Adapter (arXiv 2303.14704)."""

from typing import NamedTuple


class Recipe(NamedTuple):
    description: str                                     # one line
    row: str                                             # its row in the paper's table
    published: dict                                      # {task: score as printed there}
    settings: dict


def course(*scores):
    return dict(zip(("sst", "para", "sts"), scores))


PAPER = dict(pairs="separate", lr=1e-5, head_lr=1e-5, batch_size=8, epochs=10, warmup=0.0,
            decay=False, weight_decay=0.0, clip=0.0)
LINEAR_HEADS = PAPER | dict(head="linear")
CUSTOM_HEADS = PAPER | dict(head="sst=mlp,para=mlp,sts=relu-cosine")
MLP_HEADS = PAPER | dict(head="mlp", surgery="pcgrad")
COSINE_HEAD = PAPER | dict(head="mlp,sts=cosine", loss="cosine", surgery="pcgrad")
ONE_EACH = dict(lora=15, surgery="none")
ONE_FOR_ALL = dict(lora=15, adapters="shared")
LORA_BEST = dict(lora=8, lora_targets="query,key,value,attention_output,fc_in,fc_out", epochs=3)
GLUE = dict(tasks="rte", pooling="pooler", batch_size=32, lr=2e-5, head_lr=2e-5, weight_decay=0.01,
            warmup=0.0, epochs=30)
GLUE_LORA = GLUE | dict(lora=4, lora_norms=True)
PRUNE_LORA = GLUE_LORA | dict(keep_heads="0.6944", lora_top=8)      # 100 of 144 heads

RECIPES = {
    # Alappat: LASER on a multitask BERT, Table 1 (dev)
    "mb-sst": Recipe("one task, sentiment; the other heads stay untrained", "Alappat, MB-SST",
                     course(.517, .509, -.065), LINEAR_HEADS | dict(train_tasks="sst")),
    "mb-para": Recipe("one task, paraphrases", "Alappat, MB-PARA",
                      course(.136, .788, -.012), LINEAR_HEADS | dict(train_tasks="para")),
    "mb-sts": Recipe("one task, similarity", "Alappat, MB-STS",
                     course(.126, .608, .378), LINEAR_HEADS | dict(train_tasks="sts")),
    "mb-comb": Recipe("all three, one batch of each a step, the losses' sum", "Alappat, MB-COMB",
                      course(.506, .779, .360), LINEAR_HEADS),
    "mb-comb-gs": Recipe("with gradient surgery over the whole gradient", "Alappat, MB-COMB-gs",
                         course(.493, .786, .380), LINEAR_HEADS | dict(surgery="pcgrad")),
    "mb-comb-gs-perweight": Recipe("with gradient surgery weight by weight", "Alappat, MB-COMB-gs",
                                   {}, LINEAR_HEADS | dict(surgery="pcgrad-tensor")),
    "mb-comb-as": Recipe("with annealed sampling of one task a step", "Alappat, MB-COMB-as",
                         course(.491, .782, .367), LINEAR_HEADS | dict(sampling="annealed")),
    "mb-comb-csd": Recipe("with custom heads: a hidden layer, and ReLU(cos) for similarity",
                          "Alappat, MB-COMB-csd", course(.492, .837, .705), CUSTOM_HEADS),
    "mb-comb-final": Recipe("custom heads and L2", "Alappat, MB-COMB-final",
                            course(.508, .842, .705), CUSTOM_HEADS | dict(l2=1e-3)),
    # Fuest & Tacke: LoRA for a multitask BERT, its baselines (test)
    "baseline1": Recipe("a frozen encoder, heads with a hidden layer", "Fuest & Tacke, Baseline 1",
                        course(.3842, .6727, .2489),
                        MLP_HEADS | dict(surgery="none", freeze=True, head_lr=1e-3)),
    "baseline2": Recipe("all of it trained, gradient surgery", "Fuest & Tacke, Baseline 2",
                        course(.5077, .7894, .3569), MLP_HEADS),
    "baseline3": Recipe("and a cosine for similarity", "Fuest & Tacke, Baseline 3",
                        course(.4923, .7931, .5841), COSINE_HEAD),
    "baseline4": Recipe("and an encoder for each task", "Fuest & Tacke, Baseline 4", course(
        .4996, .7846, .5885), COSINE_HEAD | dict(surgery="none", encoders="separate")),
    # Fuest & Tacke: LoRA (test); 1.11 M parameters a set are rank 15 on the attention's matrices
    "lora1": Recipe("a frozen encoder with an adapter for each task", "Fuest & Tacke, LoRA 1",
                    course(.4951, .7673, .4761), MLP_HEADS | ONE_EACH),
    "lora2": Recipe("and a cosine for similarity", "Fuest & Tacke, LoRA 2",
                    course(.4868, .7695, .6161), COSINE_HEAD | ONE_EACH),
    "lora3": Recipe("one adapter that all tasks share, gradient surgery", "Fuest & Tacke, LoRA 3",
                    course(.4713, .6910, .5755), MLP_HEADS | ONE_FOR_ALL),
    "lora4": Recipe("and a cosine for similarity", "Fuest & Tacke, LoRA 4",
                    course(.4877, .6922, .6658), COSINE_HEAD | ONE_FOR_ALL),
    "lora4-warmup": Recipe("with a warm-up and batches of 24", "Fuest & Tacke, future work", course(
        .5235, .7445, .7274), COSINE_HEAD | ONE_FOR_ALL | dict(batch_size=24, warmup=0.1)),
    # Wang et al.: Pruning-Adapter on GLUE, Table 1 (dev); --tasks says which
    "glue-full": Recipe("one task of GLUE, all of the encoder trained", "Wang et al., Full", dict(
        mnli=.8456, mrpc=.8014, qnli=.9154, rte=.6245, sst2=.9243, wnli=.4085), GLUE),
    "glue-lora": Recipe("adapters of rank 4 and LayerNorms", "Wang et al., LoRA", dict(
        mnli=.7724, mrpc=.6838, qnli=.8805, rte=.6065, sst2=.9163, wnli=.4366), GLUE_LORA),
    "glue-prune-lora": Recipe(
        "100 of 144 heads stay, then adapters of rank 8 and 4", "Wang et al., Prune-LoRA", dict(
            mnli=.7816, mrpc=.6838, qnli=.8728, rte=.5993, sst2=.9106, wnli=.5634), PRUNE_LORA),
    # ours
    "glue-prune-lora-best": Recipe("the same, at the learning rate that LoRA needs", "", {},
                                   PRUNE_LORA | dict(lr=0.0, head_lr=1e-3, warmup=0.1, epochs=0)),
    "best": Recipe("the strongest single model found here: joint pairs, our defaults", "", {},
                   dict(epochs=1)),
    "lora-best": Recipe("an adapter for each task, at the learning rate that LoRA needs", "", {},
                        LORA_BEST),
    "lora-groups": Recipe("the same, but para and sts share theirs", "", {},
                          LORA_BEST | dict(adapters="sst=sst,para=pairs,sts=pairs")),
    "lora-xs": Recipe("LoRA-XS: r × r numbers a matrix", "", {},
                      LORA_BEST | dict(lora=24, lora_kind="xs-out")),
}
