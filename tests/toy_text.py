"""Text that is easy to learn, and small pretraining runs on it."""

import json

from pretraining import __main__ as pretrain

PARTNERS = {"sea": "salt", "sky": "blue", "fire": "heat", "night": "dark", "snow": "cold"}
OTHERS = ("one", "two", "ten", "big", "old", "new", "far", "now", "low", "hot", "dry", "all")
FLAGS = ("--vocab-size", 100, "--hidden", 32, "--layers", 2, "--heads", 2, "--intermediate", 64,
         "--max-positions", 32, "--max-length", 32, "--batch-tokens", 512, "--heldout", 0.1,
         "--device", "cpu")


def toy_line(rng):
    """A word that alternates with its partner: `two old : sea salt sea salt`."""
    word, first = rng.choice(list(PARTNERS)), rng.sample(OTHERS, 2)
    return f"{' '.join(first)} : " + f"{word} {PARTNERS[word]} " * rng.randrange(2, 5)


def run(text, out, *more):
    """Pretrain a small model on the folder `text` → the folder `out`."""
    pretrain.main([str(flag) for flag in ("--text", text, "--out", out, *FLAGS, *more)])
    return out


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def scores(folder, which=-1):
    """The held-out scores of a run's last (or first) evaluation."""
    log = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [entry["heldout"] for entry in log if "heldout" in entry][which]
