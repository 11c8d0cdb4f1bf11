"""What an attack tells: examples side by side, and the table."""

from statistics import fmean

from attack.judge import pseudo_likelihood, similarities
from common.tables import text_table
from multitask.tasks import TASKS


def has_classes(task):
    return not TASKS[task].is_regression


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
