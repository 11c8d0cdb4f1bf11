"""What a person looks at when a run has ended: the table of scores and the picture of its
curves."""

from bert.files import writing


def score_table(scores, title="dev"):
    """{task: {metric: value}, "overall": …, "mean": …} as lines of text."""
    rows = []
    for task, metrics in scores.items():
        if isinstance(metrics, dict):
            rows += [(task, metric, value) for metric, value in metrics.items()]
        else:
            rows.append(("", task, metrics))
    width = max(len(metric) for _, metric, _ in rows)
    lines = [f"{'task':7} {'metric':{width}} {title:>7}"]
    lines += [f"{task:7} {metric:{width}} {value:7.3f}" for task, metric, value in rows]
    return "\n".join(lines)


def score_line(epoch, scores, better):
    """The scores of one evaluation in one line."""
    shown = [f"{name} {next(iter(s.values())) if isinstance(s, dict) else s:.3f}"
             for name, s in scores.items()]
    return f"epoch {epoch:.4g}:  " + "  ".join(shown) + ("  (best so far)" if better else "")


def draw_curves(lines, path):
    """Losses over steps, and dev scores over epochs, as a picture."""
    from matplotlib.figure import Figure  # slow to import, needed once

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = [line for line in lines if "loss" in line]
    for task in losses[0]["loss"] if losses else ():
        left.plot([x["step"] for x in losses], [x["loss"][task] for x in losses], label=task)
    scores = [line for line in lines if "dev" in line]
    for task, metrics in scores[0]["dev"].items() if scores else ():
        values = [x["dev"][task] for x in scores]
        name = task
        if isinstance(metrics, dict):
            metric = next(iter(metrics))
            name, values = f"{task} {metric}", [value[metric] for value in values]
        right.plot([x["step"] for x in scores], values, marker="o", label=name)
    left.set(xlabel="step", ylabel="training loss", title="loss of each task")
    right.set(xlabel="step", ylabel="score", title="dev scores")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    with writing(path) as file:
        figure.savefig(file, format="png", dpi=120)
