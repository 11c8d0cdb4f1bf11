"""What an attack tells: how another encoder and a language model judge the texts, examples side by
side, and the table."""

from statistics import fmean

import torch
import torch.nn.functional as F

from bert.layout import Layout
from common.tables import text_table
from multitask.tasks import TASKS

ROWS = 64                                                    # sequences in one pass


@torch.inference_mode()
def sentence_vectors(bert, tokenizer, texts):
    """→ [n, H]: the mean of the last hidden states of each text."""
    vectors, device = [], bert.word_embeddings.weight.device
    for first in range(0, len(texts), ROWS):
        batch = tokenizer(texts[first:first + ROWS])
        layout = Layout(batch["attention_mask"]).to(device)
        hidden, layout = bert.embed(batch["input_ids"].to(device), layout)
        grid = layout.pad(bert.encode(hidden, layout))
        vectors.append(grid.sum(dim=1) / layout.mask.sum(dim=1, keepdim=True))
    return torch.cat(vectors)


def similarities(bert, tokenizer, texts, others):
    """→ [n]: the cosines of the texts' vectors with the others'."""
    return F.cosine_similarity(*(sentence_vectors(bert, tokenizer, side)
                                 for side in (texts, others))).tolist()


@torch.inference_mode()
def pseudo_likelihood(lm, tokenizer, text):
    """The mean of log p(token | all others) over the tokens of a text, each masked in turn (Salazar
    et al. 2020); NaN without a token."""
    ids, device = torch.tensor(tokenizer.encode([text])[0][0]), lm.head.bias.device
    places = torch.arange(1, len(ids) - 1)
    total = 0.0
    for part in places.split(ROWS):
        masked = ids.repeat(len(part), 1)
        masked[torch.arange(len(part)), part] = tokenizer.mask_token_id
        layout = Layout(torch.ones_like(masked))
        chosen = torch.zeros_like(masked, dtype=torch.bool)
        chosen[torch.arange(len(part)), part] = True
        rows = layout.select(chosen).to(device)
        hidden, layout = lm.bert.embed(masked.to(device), layout.to(device))
        hidden = lm.bert.encode(hidden, layout, output_rows=rows)
        log_p = lm.head(hidden, lm.bert.word_embeddings.weight).log_softmax(dim=1)
        total += float(log_p.cpu().gather(1, ids[part][:, None]).sum())
    return total / len(places) if len(places) else float("nan")


def judge_records(records, attack, judge, lm):
    """Add to each record its similarity by another encoder and, with a language model, the
    pseudo-likelihoods of the text before and after."""
    before = [record["texts"][attack.text] for record in records]
    after = [record["adversarial"] for record in records]
    for record, value in zip(records, similarities(*judge, before, after)):
        record["similarity"] = value
    for record, old, new in zip(records, before, after) if lm is not None else ():
        record["likelihood"] = [pseudo_likelihood(lm, attack.tokenizer, text)
                                for text in (old, new)]


def summary(records, attack):
    """{row of the table: text}"""
    count, won = len(attack.examples), [record for record in records if record["success"]]

    def mean(values, form=".3f"):
        values = [value for value in values if value == value]           # no NaN
        return format(fmean(values), form) if values else "-"

    rows = {
        "accuracy before": f"{len(attack.right) / count:.3f}",
        "accuracy after": f"{(len(attack.right) - len(won)) / count:.3f}",
        "misled, of those attacked": f"{len(won) / len(records):.3f}",
        "misled by a tenth of the tokens": mean(
            r["success"] and r["changed"] <= r["tokens"] / 10 for r in records),
        "misled before tokenizing again": mean(record["misled_as_ids"] for record in records),
        "similarity": mean(record["similarity"] for record in records),
        "similarity of the misleading": mean(record["similarity"] for record in won),
        "share of changed tokens": mean(r["changed"] / r["tokens"] for r in records),
        "soft margin": mean((record["soft_margin"] for record in records), ".2f"),
        "hard margin": mean((record["hard_margin"] for record in records), ".2f"),
        "forward passes": mean((record["forward"] for record in records), ".0f"),
        "backward passes": mean((record["backward"] for record in records), ".0f"),
    }
    if "likelihood" in records[0]:
        rows["log-likelihood of a token before"] = mean(r["likelihood"][0] for r in records)
        rows["log-likelihood of a token after"] = mean(r["likelihood"][1] for r in records)
    return rows


def table(columns):
    """{method: summary} → a text table, a column for each method."""
    names = list(next(iter(columns.values())))
    return text_table([["", *columns], *([name, *(column[name] for column in columns.values())]
                                         for name in names)])


def side_by_side(records, task, count):
    """The first examples that mislead, before and after, with the changed words in brackets."""
    names, lines = TASKS[task].label_names, []
    for record in [record for record in records if record["success"]][:count]:
        old, new = record["marked"]
        width = max(len(names[record["label"]]), len(names[record["after"]]))
        lines += ["", f"{names[record['label']]:{width}}  {old}",
                  f"{names[record['after']]:{width}}  {new}"]
    return "\n".join((*lines, ""))


def about(attack):
    """Who was left out, in sentences."""
    wrong = len(attack.examples) - len(attack.right)
    fixed = len(attack.right) - sum(map(len, attack.batches))
    return (f"{len(attack.examples)} examples: {wrong} were wrong before and are not attacked; "
            f"{fixed} are right but have no word that may change, and count as not misled.")
