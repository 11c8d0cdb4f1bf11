"""A run as one HTML page, for people who would rather look than read.

    python evaluate.py runs/first --report first.html
    python evaluate.py runs/first --report first.html --text "A dull, dull film."    # maps of it

The page holds its pictures and styles, asks for nothing from outside, and runs no script: every
text of the data is escaped, and a Content-Security-Policy forbids the rest.
"""

import base64
import io
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch

from bert import Layout, UserError
from bert.files import atomic_write
from bert.tour import attention_maps, draw_maps, height_of
from common.flags import command
from common.log import progress_bar
from common.plots import new_figure
from multitask.course import Example
from multitask.data import tokenize
from multitask.evaluation import read_split, run_split
from multitask.metrics import accuracy, summary
from multitask.model import chosen_tasks
from multitask.report import tasks_that_judge
from multitask.runs import is_trained, read_settings
from multitask.standard_errors import bootstrap, fingerprint_of
from multitask.tasks import TASKS

WORST = 10                                                   # wrong answers shown of a dev set
STYLE = """
body { font: 16px/1.45 sans-serif; color: #111; max-width: 60em; margin: auto; padding: 1em; }
h2 { border-bottom: 2px solid #0072b2; margin-top: 2em; }  .wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5em 0; }
th, td { padding: .25em .6em; border: 1px solid #bbb; text-align: left; min-width: 3em; }
td { vertical-align: top; }  td.text { overflow-wrap: anywhere; min-width: 10em; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; }
figure { margin: 1em 0; overflow-x: auto; }  figure, tr { break-inside: avoid; }
@media screen and (max-width: 50em) { img { max-width: 50em; } }
@media screen and (prefers-color-scheme: dark) {
  body { background: #16181c; color: #e8e8e8; }  th, td { border-color: #555; }
}
@media print { body { max-width: none; font-size: 11px; print-color-adjust: exact; } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1>{body}</body></html>
"""


class Answers(NamedTuple):
    """What the model says to one dev set."""

    task: str
    name: str                                    # of the dev set: the task's, or "mnli (…)"
    examples: list
    labels: list
    predictions: list
    probabilities: torch.Tensor | None           # [n, classes]; None of a regression


class Html(str):
    """Text that is HTML already, and is not escaped."""


def html_table(rows):
    """Rows of texts, numbers and Html cells, the header first → a table."""
    def cell(value):
        if isinstance(value, Html):
            return value
        if isinstance(value, str):
            kind = ' class="text"' if len(value) > 20 else ""    # may be broken anywhere
            return f"<td{kind}>{escape(value)}</td>"
        return f'<td class="number">{value:{",d" if isinstance(value, int) else ".3f"}}</td>'

    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>\n" for row in rows[1:])
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}</table></div>'


def picture(content, caption):
    """A figure, or the bytes of a PNG → an image inside the page."""
    if not isinstance(content, bytes):
        file = io.BytesIO()
        content.savefig(file, format="png", dpi=100)
        content = file.getvalue()
    data, caption = base64.b64encode(content).decode(), escape(caption)
    return f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><br>{caption}</figure>'


def answer_all(args, session):
    """→ [Answers], one for each dev set of the tasks that --tasks names."""
    model, settings = session.model, session.settings
    if not Path(settings.data).is_dir():
        raise UserError(f"--data {settings.data} is not a folder; it must hold the data files")
    limit = settings.limit if args.limit is None and not args.data else args.limit
    sets = {(task, name): read_split(task, name, settings.data, settings.strict_rows)
            [:limit or None]
            for task in chosen_tasks(model, args.tasks) for name in TASKS[task].dev_sets}
    answers = []
    with progress_bar("report", sum(map(len, sets.values())), "example", leave=False) as bar:
        for (task, name), examples in sets.items():
            split = tokenize(examples, session.tokenizer, model.pairs)
            outputs = run_split(model, task, split, session.device, session.autocast, bar)
            title = task if name == TASKS[task].dev_sets[0] else f"{task} ({name})"
            answers.append(Answers(task, title, examples, [example.label for example in examples],
                                   TASKS[task].predict(outputs).tolist(),
                                   None if TASKS[task].is_regression else class_odds(outputs)))
    return answers


def class_odds(outputs):
    """outputs [n, 1] or [n, classes] → probabilities [n, classes]"""
    if outputs.size(1) == 1:
        outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=1)       # sigmoid(x)
    return outputs.softmax(dim=1)


def scores_section(answers):
    """Each score with its standard error and, of an accuracy, that of the most frequent class."""
    rows, scores, draws = [["dev set", "score", "value", "± standard error", "most frequent class",
                            "examples"]], {}, {}
    for task, name, examples, labels, predictions, _ in answers:
        constant = [max(set(labels), key=labels.count)] * len(labels)
        for metric, function in TASKS[task].metrics.items():
            value = function(predictions, labels)
            drawn = bootstrap(function, predictions, labels, fingerprint_of(examples))
            rows.append([name, metric, value, float(drawn.std()),
                         accuracy(constant, labels) if function is accuracy else "", len(labels)])
            if name == task:
                scores.setdefault(task, {})[metric] = value
                draws.setdefault(task, {})[metric] = drawn
    spread = summary(draws)
    rows += [[name, "", value, float(spread[name].std()), "", ""]
             for name, value in summary(scores).items() if name not in scores and len(scores) > 1]
    return ("<h2>Scores</h2>" + html_table(rows) + "<p>The standard error: how much a score would "
            "vary with other examples (bootstrap). Less than two of them may be chance.</p>")


def run_section(folder):
    """The command that makes the run, what run.json says of it, and the pictures in its folder."""
    record, settings, _ = read_settings(folder)
    made = (f"python train_multitask.py {command(settings)}" if is_trained(record) else
            f"none of train_multitask.py: it was made of {settings.from_run}")
    rows = [["of the run", ""], ["command", made],
            *([name, ", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}"
                               for key, value in record[name].items())]
              for name in ("parameters", "times", "versions")),
            *(["edit", str(edit)] for edit in record["edits"])]
    files = [file for pattern in ("curves.png", "importance/*.png", "laser/*.png")
             for file in sorted(folder.glob(pattern))]
    return "<h2>Settings</h2>" + html_table(rows) + "<h2>Pictures</h2>" * bool(files) + "".join(
        picture(file.read_bytes(), str(file.relative_to(folder))) for file in files)


def confusion_table(found):
    """Rows are labels, columns predictions; the darker, the larger the share of the label."""
    names = TASKS[found.task].label_names
    counts = torch.zeros(len(names), len(names), dtype=torch.long)
    for label, predicted in zip(found.labels, found.predictions):
        counts[int(label), int(predicted)] += 1
    rows = [["label \\ prediction", *names]]
    for name, line in zip(names, counts.tolist()):
        rows.append([name])
        for count in line:
            share = count / max(sum(line), 1)
            style = f"background: rgba(0,90,160,{share:.2f})" + "; color: white" * (share > 0.6)
            rows[-1].append(Html(f'<td style="{style}">{count:,}<br>{share:.0%}</td>'))
    return html_table(rows)


def scatter(found):
    """Predictions over labels, with the line on which they are equal."""
    figure = new_figure(5, 4.5)
    axes = figure.subplots()
    axes.plot(found.labels, found.predictions, "o", markersize=4, alpha=0.35, color="#0072b2")
    limits = [0, TASKS[found.task].max_label]
    axes.plot(limits, limits, color="black", linewidth=1, label="prediction = label")
    axes.set(xlabel="label", ylabel="prediction")
    axes.grid(alpha=0.3)
    axes.legend()
    return picture(figure, f"{found.name}: each point is an example")


def worst_answers(found):
    """→ the numbers of the wrong answers that the model is most certain of, or of the largest
    errors of a regression."""
    wrong = [n for n, (p, y) in enumerate(zip(found.predictions, found.labels)) if p != y]
    if found.probabilities is None:
        return sorted(wrong, key=lambda n: -abs(found.predictions[n] - found.labels[n]))[:WORST]
    return sorted(wrong, key=lambda n: -found.probabilities[n].max())[:WORST]


def worst_table(found):
    """The worst answers with their texts, and the probability of each class."""
    row = TASKS[found.task]
    rows = [["id", *("text", "its pair")[:len(row.columns)], "label", "prediction",
             *["probabilities"] * (not row.is_regression)]]
    for number in worst_answers(found):
        example, said = found.examples[number], [found.labels[number], found.predictions[number]]
        if not row.is_regression:
            odds = zip(row.label_names, found.probabilities[number].tolist())
            said = [*(row.label_names[int(label)] for label in said),
                    ", ".join(f"{name} {value:.2f}" for name, value in odds)]
        rows.append([example.id, *example.texts, *said])
    return html_table(rows)


@torch.inference_mode()
def maps_of(session, task, texts):
    """The attention maps of a text or a pair, a picture for each sequence that is encoded."""
    model, tokenizer, device = session.model, session.tokenizer, session.device
    bert, found = model.encoder(task), []
    for ids, types in tokenize([Example("", texts, None)], tokenizer, model.pairs).segments:
        batch = tokenizer.pad(ids, types)
        layout = Layout(batch["attention_mask"])
        if model.adapters:
            layout = layout.with_adapters([(model.adapters.get(task), 1)])
        hidden, layout = bert.embed(batch["input_ids"].to(device), layout.to(device),
                                    batch["token_type_ids"].to(device))
        maps = attention_maps(bert, hidden, layout)
        tokens = [tokenizer.backend.id_to_token(token) for token in ids[0]]
        figure = new_figure(11, height_of(tokens, maps))
        draw_maps(figure, bert, tokens, maps)
        found.append(picture(figure, f"{task}: {' '.join(tokens)}"))
    return "".join(found)


def write_report(args, session):
    """Write the page to the file args.report. With --text (and --pair) the attention maps are of
    it, else of the worst answer to each task."""
    model, texts = session.model, {}
    if args.text is not None:
        given = (args.text,) if args.pair is None else (args.text, args.pair)
        tasks = tasks_that_judge(chosen_tasks(model, args.tasks), given)
        texts = dict.fromkeys(tasks, given)
    answers = answer_all(args, session)
    body = [scores_section(answers), run_section(session.run)]
    for found in answers:
        for number in worst_answers(found)[:1] if args.text is None else ():
            texts.setdefault(found.task, found.examples[number].texts)
        shape, heading = ((scatter, "The largest errors") if found.probabilities is None else
                          (confusion_table, "Wrong, and most certain of it"))
        body += [f"<h2>{escape(found.name)}</h2>", shape(found), f"<h3>{heading}</h3>",
                 worst_table(found)]
    body += ["<h2>Attention</h2><p>What each head of each layer attends to: a row for each token, "
             "dark where it attends. Every row sums to 1.</p>",
             *(maps_of(session, *text) for text in texts.items())]
    title = escape(f"{session.run.resolve().name}: {', '.join(model.heads)}")
    page = PAGE.format(policy=POLICY, title=title, style=STYLE, body="\n".join(body))
    with atomic_write(args.report) as file:
        file.write(page.encode())
    print(f"report: {args.report}")
