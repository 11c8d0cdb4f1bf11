"""Call the function of an exercise on given tensors, for the public tests and for the grader.

A driver takes a case's tensors and options by name and returns {name: tensor or JSON value}.
"""

import json
from functools import partial
from types import SimpleNamespace

import torch

from bert import Bert, BertConfig, Layout
from bert.attention import eager_attention
from bert.errors import UserError
from bert.model import BertLayer, FeedForward
from bert.r_softmax import r_softmax
from course.adamw import adamw_step
from early_exit.exits import arithmetic, geometric
from laser.reduce import Decomposition, low_rank
from lora.layers import LoRA
from multitask.pcgrad import coefficients, pcgrad
from multitask.schedule import annealing_exponent, draw
from pretraining.masking import Masking
from pruning.gates import importance, normalize
from pruning.removal import remove_heads

VOCABULARY = ["[PAD]", "[UNK]", *"abcdefghijklm", "[CLS]", "[SEP]", "[MASK]", *"nopqrstuvwxyz",
              "##b", "##c"]                                  # of exercise 6


def small(kind, seed, dtype=torch.float32, train=False, **config):
    """A seeded Bert (or one of its modules) of width 12 with 3 heads. While training, dropout drops
    everything, so that a result is known."""
    shape = dict(vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
                 intermediate_size=20, max_position_embeddings=16)
    module = kind(BertConfig(**shape | config)).double().train(train)
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():                       # float64 is the same on all machines
        weight.data.normal_(std=0.5, generator=generator)
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 1.0
    return module.to(dtype)


def attend(query, key, value, *rest):
    """In attention's place, so that exercises after the first do not need it"""
    return query * (key * value).sum(dim=2, keepdim=True)


def refuses(function, *values):
    """→ what a function that must raise a UserError did"""
    try:
        function(*values)
    except UserError:
        return "a UserError"
    return "no UserError"


def attention(query, key, value, key_mask=None, dropout=0.0, sharper=None):
    more = {"probabilities": lambda scores, dim: torch.softmax(sharper * scores, dim)}
    return {"context": eager_attention(query, key, value, key_mask, dropout,
                                       **(more if sharper else {}))}


def add_and_norm(hidden, ffn_output, mask, seed, train=False):
    layer, layout = small(partial(BertLayer, number=0), seed, hidden.dtype, train), Layout(mask)
    layer.attention.attention_function = attend
    hidden, ffn_output = layout.unpad(hidden), layout.unpad(ffn_output)
    first = layout.cls_rows()
    return {"add_and_norm": layer.add_and_norm(hidden, ffn_output, layout),
            "attention_block": layer.attention_block(hidden, layout),
            "attention_block of [CLS]": layer.attention_block(hidden, layout, output_rows=first),
            "module": layer}


def ffn(hidden, seed, activation="gelu"):
    module = small(partial(FeedForward, number=0), seed, hidden.dtype, hidden_act=activation)
    activations = module.activate(hidden, None)
    return {"activate": activations, "project": module.project(activations, None),
            "forward": module(hidden, None), "module": module}


def embeddings(mask, seed, train=False, input_ids=None, token_type_ids=None, inputs_embeds=None):
    dtype = torch.float32 if inputs_embeds is None else inputs_embeds.dtype
    bert = small(Bert, seed, dtype, train)
    hidden, layout = bert.embed(input_ids, mask, token_type_ids, inputs_embeds)
    return {"hidden": hidden, "positions": layout.positions, "module": bert}


def adamw(weight, gradient, first, second, step, **settings):
    new, first, second = adamw_step(weight, gradient, first, second, step, **settings)
    return {"weight": new, "first moment": first, "second moment": second}


def masking(ids, whole_word, seed):
    """Two draws from one generator, and the first one again, each of a copy of the ids."""
    tokenizer = SimpleNamespace(mask_token_id=VOCABULARY.index("[MASK]"), backend=SimpleNamespace(
        get_vocab=lambda: {token: n for n, token in enumerate(VOCABULARY)}))
    rule, generator = Masking(tokenizer, whole_word), torch.Generator().manual_seed(seed)
    copies = [ids.clone() for _ in range(4)]
    outputs = {"choose": rule.choose(copies[3], torch.Generator().manual_seed(seed))}
    for n in range(3):
        generator = torch.Generator().manual_seed(seed) if n == 2 else generator
        outputs[f"masked ids {n}"], outputs[f"chosen {n}"] = rule(copies[n], generator)
    ids.copy_(next((one for one in copies if not one.equal(ids)), ids))      # a call changed it
    return outputs


def lora(rows, out, weight, a, b, alpha, train=False):
    adapter = LoRA(weight, a.size(0), alpha, 1.0 if train else 0.5).train(train)
    del adapter.A, adapter.B
    adapter.A, adapter.B = a, b                              # leaves of the gradient
    base = torch.nn.Linear(*weight.T.shape).to(weight.dtype)
    with torch.no_grad():
        base.weight.copy_(weight)
        adapter.merge_into(base)
    return {"forward": adapter(rows, out), "delta": adapter.delta(), "merged": base.weight.detach()}


def reduction(weight, ranks):
    found, outputs = Decomposition(weight), {}
    for rank in ranks:
        down, up = found.factors(rank)
        outputs |= {f"low_rank({rank})": low_rank(weight, rank), f"factors({rank})": up @ down,
                    f"products of rows of factors({rank})": down @ down.T,
                    f"energy({rank})": torch.tensor(float(found.energy(rank))),
                    f"error({rank})": torch.tensor(float(found.error(rank))),
                    f"width of factors({rank})": [down.size(0), up.size(1)]}
    return outputs


def surgery(orders, per_tensor=False, **gradients):
    """gradients "task.tensor"; a task may lack a tensor."""
    tensors = sorted({name.partition(".")[2] for name in gradients})
    given = [[gradients.get(f"{task}.{tensor}") for tensor in tensors]
             for task in range(len(orders))]
    combined, grams = pcgrad(given, orders, per_tensor)
    gram = grams.sum(dim=0).tolist()
    total = [float(c) for c in coefficients(gram, orders)]
    return {f"tensor {n}": tensor for n, tensor in enumerate(combined) if tensor is not None} | {
        "coefficients": torch.tensor(total).double(), "orders after the call": orders,
        "gram after the call": torch.tensor(gram).double()}


def annealing(sizes, epochs, c, seed, steps):
    names = {f"task{n}": size for n, size in enumerate(sizes)}
    alphas = [annealing_exponent(epoch, epochs, c) for epoch in range(1, epochs + 1)]
    draws = [[list(names).index(task) for task in draw(names, alphas[-1], seed, step)]
             for step in (*range(1, steps + 1), *range(1, 21))]          # the first 20 again
    return {"exponents": torch.tensor(alphas, dtype=torch.float64), "draws": torch.tensor(draws)}


def head_importance(mask, seed, kind="heads", by="global", pruned=None, segments=1, frozen=(),
                    edges=False, **input_ids):
    """Every batch has the same lengths and ids of its own: "ids0", "ids1", … The encoder calls the
    matrices that gates belong to, and nothing that is another exercise."""
    bert, layout = small(Bert, seed, torch.float64, pruned_heads=pruned or {}), Layout(mask)
    given = [SimpleNamespace(layout=layout, labels=torch.zeros(layout.batch // segments), ids=ids)
             for ids in input_ids.values()]
    for name in frozen:
        bert.get_submodule(name).requires_grad_(False)

    def passed(layer, hidden, layout):
        mixed = layer.attention.output(layer.attention.value(hidden, layout).tanh(), layout)
        return layer.ffn.fc_out(layer.ffn.fc_in(mixed, layout).tanh(), layout)

    def loss(batch):
        hidden = layout.unpad(bert.word_embeddings(batch.ids))
        for layer in bert.layers:
            hidden = layer(hidden, layout)
        return (hidden.tanh().sum(dim=1) * (layout.sequence + 1.0).cos()).sum()

    for layer in bert.layers:
        layer.forward = partial(passed, layer)
    raw = importance(bert, given, loss, kind)
    still = [name for name, weight in bert.named_parameters() if not weight.requires_grad]
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in bert.modules())
    found = {"importance": raw, "normalized": normalize(raw, by), "frozen afterwards": still,
             "hooks afterwards": hooks}
    if edges:
        rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
        found |= {"normalized, equal scores": normalize(torch.ones(2, 3).double(), by),
                  "normalized, a row of zeros": normalize(rows, "layer"),
                  "normalize without a part": refuses(normalize, torch.full((2, 3), torch.nan)),
                  "importance without a batch": refuses(importance, bert, [], loss, kind)}
    return found


def head_removal(input_ids, mask, seed, removals, off=None, refused=()):
    bert = small(Bert, seed, masked_heads=off or {})
    bert.layers[0].attention.key.requires_grad_(False)
    removals, refused = ([{int(layer): numbers for layer, numbers in heads.items()}
                          for heads in some] for some in (removals, refused))
    for heads in removals:
        remove_heads(bert, heads)
    answers = [refuses(remove_heads, bert, heads) for heads in refused]
    layout = Layout(mask)
    hidden = layout.unpad(bert.word_embeddings(input_ids))
    for layer in bert.layers:
        layer.attention.attention_function = attend
        hidden = hidden + layer.attention(hidden, layout)
    attentions = [layer.attention for layer in bert.layers]
    masks = [None if one.head_mask is None else one.head_mask.tolist() for one in attentions]
    weights = {name: weight.detach() for name, weight in bert.named_parameters()
               if ".attention." in name}
    frozen = [name for name, weight in bert.named_parameters() if not weight.requires_grad]
    return {"what must raise": answers, "head_indices": [one.head_indices for one in attentions],
            "num_heads": [one.num_heads for one in attentions], "frozen": frozen,
            "pruned heads": bert.config.pruned_heads, "masked heads": bert.config.masked_heads,
            "head_mask": masks, "edits": bert.edits, **weights, "hidden": hidden}


def exit_ensemble(logits, weights, bias):
    log_probs = logits.log_softmax(dim=2)
    return {"geometric": geometric(log_probs, weights, bias),
            "arithmetic": arithmetic(log_probs, weights, bias)}


def sparse_softmax(scores, zeros, valid=None, **options):
    scores = scores.masked_fill(scores > 1e6, -torch.inf)    # no -inf in a file of cases
    return {"probabilities": r_softmax(scores, zeros, valid, **options)}


DRIVERS = {"attention": attention, "add-and-norm": add_and_norm, "ffn": ffn,
           "embeddings": embeddings, "adamw": adamw, "masking": masking, "lora": lora,
           "low-rank": reduction, "pcgrad": surgery, "annealing": annealing,
           "importance": head_importance, "head-removal": head_removal,
           "exit-ensemble": exit_ensemble, "r-softmax": sparse_softmax}


def run_case(exercise, tensors, options, gradient=False):
    """→ {name: tensor or JSON value} that the exercise's functions give, with the gradients of all
    floating-point inputs if asked for, and every input as it is after the call."""
    given = {name: tensor.clone() for name, tensor in tensors.items()}
    leaves = {name: tensor.requires_grad_() for name, tensor in given.items()
              if gradient and tensor.is_floating_point()}
    outputs = DRIVERS[exercise](**given, **json.loads(json.dumps(options)))
    module = outputs.pop("module", torch.nn.Module())
    if gradient:
        leaves |= dict(module.named_parameters())
        sums = [(value * torch.arange(value.numel()).cos().view_as(value)).sum()
                for value in outputs.values()
                if isinstance(value, torch.Tensor) and value.requires_grad]
        found = torch.autograd.grad(sum(sums), list(leaves.values()), allow_unused=True)
        outputs |= {f"gradient of {name}": part for name, part in zip(leaves, found)
                    if part is not None}
    outputs |= {f"{name} after the call": tensor for name, tensor in given.items()}
    return {name: value.detach().contiguous() if isinstance(value, torch.Tensor) else
            json.loads(json.dumps(value)) for name, value in outputs.items()}
