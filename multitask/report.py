"""What a person looks at when a run has ended: the table of scores and the picture of its
curves."""

from common.plots import draw_curves as draw_panels


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


def score_line(epoch, scores, improved_tasks):
    """The scores of one evaluation in one line; `better`: the tasks whose model is kept."""
    shown = [f"{name} {next(iter(s.values())) if isinstance(s, dict) else s:.3f}"
             for name, s in scores.items()]
    tasks = {name for name, s in scores.items() if isinstance(s, dict)}
    which = "" if set(improved_tasks) == tasks else ": " + ", ".join(improved_tasks)
    return f"epoch {epoch:.4g}:  " + "  ".join(shown) + f"  (best so far{which})" * bool(improved_tasks)


def draw_curves(lines, path):
    """Losses, dev scores and, of gradient surgery, conflicts over the steps of log.jsonl's lines,
    as a picture."""
    losses, scores, cosines = {}, {}, {}
    pairs = {pair for line in lines for pair in line.get("cosine", ())}
    conflicts = {pair: share_of(lines, pair) for pair in pairs}
    for line in lines:
        for task, loss in line.get("loss", {}).items():
            losses.setdefault(task, []).append((line["step"], loss))
        for pair, cosine in line.get("cosine", {}).items():
            cosines.setdefault(f"{pair}: {conflicts[pair]:.0%} in conflict", []).append(
                (line["step"], cosine))
        for name, score in line.get("dev", {}).items():
            if isinstance(score, dict):                      # a task's metrics: the first counts
                metric, score = next(iter(score.items()))
                name = f"{name} {metric}"
            scores.setdefault(name, []).append((line["step"], score))
    panels = [("training loss of each task", losses), ("dev scores", scores)]
    if cosines:
        panels.append(("cosine of the tasks' gradients", cosines))
    draw_panels(panels, path)


def share_of(lines, pair):
    """The fraction of steps in which these two tasks' gradients were in conflict."""
    conflicts = [line["conflict"][pair] for line in lines if pair in line.get("conflict", {})]
    return sum(conflicts) / len(conflicts)
