"""What a person reads when a run has ended: the table of scores."""

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
