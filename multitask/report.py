"""What a person looks at when a run has ended: the table of scores and the picture of its
curves."""

from common.plots import draw_curves
from common.tables import text_table
from multitask.metrics import main_scores
from multitask.runs import read_scores
from multitask.settings import SHARED


def score_table(scores, title="dev"):
    """{task: {metric: value}, "overall": …, "mean": …} as lines of text."""
    rows = [["task", "metric", title]]
    for name, value in scores.items():
        metrics = value if isinstance(value, dict) else {name: value}
        rows += [[name if isinstance(value, dict) else "", metric, f"{number:.3f}"]
                 for metric, number in metrics.items()]
    return text_table(rows, left=2)


def score_line(epoch, scores, improved):
    """The scores of one evaluation in one line; `improved`: the tasks whose model is kept."""
    shown = [f"{name} {value:.3f}" for name, value in main_scores(scores).items()]
    tasks = {name for name, value in scores.items() if isinstance(value, dict)}
    which = "" if set(improved) == tasks else ": " + ", ".join(improved)
    return f"epoch {epoch:.4g}:  " + "  ".join(shown) + f"  (best so far{which})" * bool(improved)


def final_report(folder, record):
    """The final table and what to do next."""
    best = ", ".join(f"step {step:,}" + (f" ({group})" if group != SHARED else "")
                     for group, step in record["best_step"].items())
    return (f"\n{score_table(read_scores(folder))}\n\nbest of the run: {best}; "
            f"{record['times']['train_seconds'] / 60:.1f} minutes in all\n"
            f"run: {folder}   curves: {folder / 'curves.png'}\n"
            f"next: python evaluate.py {folder} --split test")


def draw_training(lines, path):
    """Draw the lines of log.jsonl: losses, dev scores and, of gradient surgery, the cosines of each
    two tasks' gradients with their share of conflicts, of r-softmax the zeros of attention."""
    losses, scores, cosines, zeros = {}, {}, {}, {}
    for line in lines:
        step = line["step"]
        for name, terms in line.items():                     # "loss", and further losses
            if isinstance(terms, dict) and name not in ("dev", "cosine", "conflict", "zeros"):
                for task, value in terms.items():
                    curve = task if name == "loss" else f"{name}, {task}"
                    losses.setdefault(curve, []).append((step, value))
        for pair, cosine in line.get("cosine", {}).items():
            cosines.setdefault(pair, []).append((step, cosine))
        for task, share in line.get("zeros", {}).items():
            zeros.setdefault(task, []).append((step, share))
        for name, value in line.get("dev", {}).items():
            if isinstance(value, dict):                      # a task's metrics: the first counts
                metric, value = next(iter(value.items()))
                name = f"{name} {metric}"
            scores.setdefault(name, []).append((step, value))
    panels = [("training loss of each task", losses), ("dev scores", scores)]
    if cosines:
        panels.append(("cosine of the tasks' gradients", {
            f"{pair}: {conflict_share(lines, pair):.0%} in conflict": points
            for pair, points in cosines.items()}))
    if zeros:
        panels.append(("share of zeros in attention", zeros))
    draw_curves(panels, path)


def conflict_share(lines, pair):
    """The fraction of steps in which these two tasks' gradients were in conflict."""
    conflicts = [line["conflict"][pair] for line in lines if pair in line.get("conflict", {})]
    return sum(conflicts) / len(conflicts)
