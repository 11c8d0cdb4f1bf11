"""What a model weighs and scores, as numbers and as text."""

from pathlib import Path


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def stored(run):
    """The bytes of a saved run's encoder."""
    return sum(file.stat().st_size for file in (Path(run) / "model").glob("*.safetensors"))


def flat(scores):
    """Scores as in metrics.json → {name: number}, of each task its first metric."""
    return {name: next(iter(score.values())) if isinstance(score, dict) else score
            for name, score in scores.items()}


COLUMNS = {"parameters": ("parameters", ",.0f"), "bytes": ("bytes of the encoder", ",.0f"),
           "seconds": ("seconds to score dev", ".2f")}


def comparison(columns):
    """{title: {"parameters", "bytes", "seconds", "scores"}} side by side, as text."""
    first = next(iter(columns.values()))
    lines = [f"{'':24}" + "".join(f"{title:>14}" for title in columns)]
    lines += [f"{title:24}" + "".join(f"{c[what]:14{form}}" for c in columns.values())
              for what, (title, form) in COLUMNS.items() if what in first]
    lines += [f"{name:24}" + "".join(f"{flat(c['scores'])[name]:14.4f}" for c in columns.values())
              for name in flat(first["scores"])]
    return "\n".join(lines)
