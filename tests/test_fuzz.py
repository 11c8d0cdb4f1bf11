"""No file and no combination of flags ends in a traceback, hangs, or is wrongly taken: seeded
mutations of every file that is read, and of the flags of every command. `make test` tries a few
hundred, `make test-long` more than 20,000; MUTATIONS=N tries N of each reader."""

import io
import json
import os
import random
import shutil
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from mutations import (
    mutate_bytes,
    mutate_json,
    mutate_table,
    mutate_value,
    refused,
    time_limit,
)

import attack.__main__
import evaluate
import train_multitask
from bert import Bert, Tokenizer
from bert.checkpoint import load_bert
from bert.files import read_tensors
from bert.json_files import read_results
from common.cli import Parser
from common.log import Log
from common.run_folder import read_state
from compression.__main__ import ROW
from compression.__main__ import main as compression
from early_exit import training
from early_exit.__main__ import main as early_exit
from experts.__main__ import main as experts
from laser.__main__ import main as laser
from laser.output_cache import OutputCache
from lora.__main__ import main as lora
from lora.files import load as load_adapter
from multitask import preparation, runs
from multitask.pictures import draw_training
from multitask.report import read_rows
from multitask.session import RunSession
from multitask.tasks import TASKS
from pretraining import run as pretraining_run
from pretraining.__main__ import main as pretraining
from pruning.__main__ import main as pruning

SETTINGS = ("--device", "cpu", "--steps", "2", "--batch-size", "8", "--limit", "12")


@pytest.fixture(scope="module")
def place(checkpoint, data, tmp_path_factory):
    """A folder with a run of each kind, a pretraining run, their results, and data files."""
    patch, place = pytest.MonkeyPatch(), tmp_path_factory.mktemp("fuzz")
    patch.setattr(Figure, "savefig", lambda *arguments, **options: None)
    patch.setattr(training, "ENSEMBLE_STEPS", 5)
    patch.chdir(place)
    shutil.copytree(data, place / "data")
    shutil.copytree(checkpoint, place / "bert")
    torch.set_num_threads(1)
    train = ("--bert", "bert", "--data", "data", *SETTINGS)
    train_multitask.main([*train, "--out", "plain", "--tasks", "sst,para,sts"])
    train_multitask.main([*train, "--out", "single", "--tasks", "sst"])
    train_multitask.main([*train, "--out", "lora", "--tasks", "sst,sts", "--lora", "2"])
    laser(["apply", "plain", "--out", "factored", "--laser", "0:fc_in:0.3", "--factored"])
    laser(["sweep", "plain", "--limit", "4", "--keep", "0.5", "--matrices", "fc_in"])
    compression(["plain", "--methods", "svd", "--ratios", "5", "--save", "compressed"])
    compression(["plain", "--methods", "svd", "--ratios", "5", "--limit", "4"])
    experts(["split", "plain", "--out", "experts", "--experts", "4", "--epochs", "1"])
    early_exit(["train", "plain", "--out", "exits", "--tasks", "sst", "--examples", "10"])
    pruning(["prune", "plain", "--remove", "0:1", "--out", "pruned"])
    (place / "text.txt").write_text("\n".join(f"the film is good {n} ." for n in range(300)))
    pretraining(["--text", "text.txt", "--out", "pretrained", "--init", "bert", "--steps", "1",
                 "--heldout", "0.2", "--device", "cpu"])
    attack.__main__.main(["plain", "--task", "sst", "--limit", "4", "--steps", "2"])
    make_glue(place / "glue")
    copies(place)
    yield place
    patch.undo()


def make_glue(folder):
    """A few rows of GLUE's tasks, with their columns, and a blank or two."""
    for task in ("rte", "mnli", "cola", "qqp", "stsb"):
        row = TASKS[task]
        names = ("source", "label", "star", "sentence") if task == "cola" else (
            "index" if task != "qqp" else "id", *row.columns, row.label)
        labels = row.label_names if row.string_labels else (0, 1)
        lines = [[labels[n % 2] if name == row.label else n if name in ("index", "id") else
                  f"the film {n}" for name in names] for n in range(6)]
        (folder / row.files["train"]).parent.mkdir(parents=True)
        (folder / row.files["train"]).write_text("\n".join(
            "\t".join(map(str, line)) for line in ([names] * (task != "cola") + lines)) + "\n")


def copies(place):
    """Other forms of the checkpoint, and files that the readers compare with."""
    bert = Tokenizer.from_pretrained(place / "bert")
    bert.backend.save(str(place / "bert" / "tokenizer.json"))
    (place / "bert" / "tokenizer_config.json").write_text(json.dumps({
        "do_lower_case": True, "strip_accents": None, "model_max_length": 40}))
    for name in ("old", "shards"):
        (place / name).mkdir()
        shutil.copy(place / "bert" / "config.json", place / name)
    tensors = read_tensors(place / "bert" / "model.safetensors")
    torch.save(tensors, place / "old" / "pytorch_model.bin")
    shutil.copy(place / "bert" / "model.safetensors", place / "shards" / "a.safetensors")
    (place / "shards" / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": dict.fromkeys(tensors, "a.safetensors")}))
    results = place / "plain" / "compression" / "compress-fc_in-fc_out.json"
    shutil.copy(results, results.with_name("as-made.json"))
    records = place / "plain" / "attack" / "sst-multistep.jsonl"
    (records.parent / "header").write_text(records.read_text().splitlines()[0])


# ---- readers: name → the file, how it is mutated, what reads it (→ None, or raises)

def open_and_answer(folder):
    model, tokenizer, settings, _ = runs.open_run(folder)
    session = SimpleNamespace(model=model, tokenizer=tokenizer, device=torch.device("cpu"),
                              autocast=lambda: torch.autocast("cpu", enabled=False))
    args = SimpleNamespace(text="the film is good", pair=None, tasks=None, run=folder, json=True)
    with redirect_stdout(io.StringIO()) as said:
        evaluate.answer(args, session)
    assert "nan" not in said.getvalue().lower()


def tokenize(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    ids, _ = tokenizer.encode(["the film is good", "a (aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"])
    assert all(0 <= token < 2 ** 40 for row in ids for token in row)


def read_table(path, task):
    """Labels are in range, ids unique and texts not empty, and all stand in the file."""
    examples = TASKS[task].read_examples(path, TASKS[task])
    text = " ".join(path.read_bytes().decode("utf-8-sig").lower().split())
    assert examples and len({example.id for example in examples}) == len(examples)
    for example in examples:
        label = example.label
        assert label is None or (0 <= label <= TASKS[task].max_label and label == float(label))
        assert all(example.texts) or (label is None and TASKS[task].nullable_columns)
        assert example.id in text or "glue" in path.parts    # whose rows may be numbered


def resume(folder):
    """Prepare to go on from the saved state of the run."""
    _, settings, _ = runs.read_settings(folder)
    state = read_state(folder / "last" / "state.pt", preparation.STATE)
    preparation.prepare(settings, folder, "", runs.read_fields(folder), state)


def read_attack(path):
    header = json.loads(path.with_name("header").read_text())
    records = attack.__main__.read_lines(path, header, False, SimpleNamespace(task="sst"))
    for record in records:
        record["changed"] / record["tokens"], TASKS["sst"].label_names[record["after"]]


def draw_log(folder):
    draw_training(Log(Path(folder, "log.jsonl"), 10 ** 6).lines, Path(folder, "curves.png"))


def sweep_again():
    OutputCache(RunSession(SimpleNamespace(run="plain", device="cpu", limit=4)),
                "plain/laser/outputs.safetensors")


def attach_adapter(folder):
    load_adapter(Bert.from_pretrained("bert"), folder, "a")


def rows_of(path):
    found = json.loads(path.with_name("as-made.json").read_text())
    score_names = [name for name in next(iter(found["rows"].values())) if name not in ROW]
    for row in read_results(path, found["fingerprint"],
                            ROW | dict.fromkeys(score_names, float)).values():
        f"{row['ratio']:g} {row['model_bytes'] / 2 ** 20}"


def of_run(run, file="run.json", mutate=mutate_json):
    return f"{run}/{file}", mutate, lambda: open_and_answer(run)


def mutated_state(rng, content):
    """Bytes of a file of torch, or its values."""
    if rng.randrange(3) == 0:
        return mutate_bytes(rng, content)
    state = torch.load(io.BytesIO(content), weights_only=True)
    part = rng.choice([name for name in state if name != "model"])
    state[part] = mutate_value(rng, state[part])
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


READERS = {
    **{f"run.json of {run}": of_run(run)
       for run in ("plain", "lora", "factored", "compressed", "experts", "exits", "pruned")},
    **{file: of_run("plain", file, mutate) for file, mutate in {
        "heads.safetensors": mutate_bytes, "model/model.safetensors": mutate_bytes,
        "model/config.json": mutate_json, "model/vocab.txt": mutate_bytes}.items()},
    "metrics.json": ("plain/metrics.json", mutate_json, lambda: read_rows(["plain"])),
    "a compared run.json": ("plain/run.json", mutate_json, lambda: read_rows(["plain"])),
    "predictions": ("plain/predictions/sst-dev-output.csv", mutate_table,
                    lambda: read_rows(["plain"])),
    "adapter_config.json": ("lora/adapters/sst/adapter_config.json", mutate_json,
                            lambda: attach_adapter("lora/adapters/sst")),
    "adapter_model": ("lora/adapters/sst/adapter_model.safetensors", mutate_bytes,
                      lambda: attach_adapter("lora/adapters/sst")),
    "exits.safetensors": of_run("exits", "exits.safetensors", mutate_bytes),
    "compressed.safetensors": of_run("compressed", "model/compressed.safetensors", mutate_bytes),
    "tokenizer.json": ("bert/tokenizer.json", mutate_json, lambda: tokenize("bert")),
    "tokenizer_config.json": ("bert/tokenizer_config.json", mutate_json, lambda: tokenize("bert")),
    "pytorch_model.bin": ("old/pytorch_model.bin", mutated_state, lambda: load_bert(Bert, "old")),
    "the index of shards": ("shards/model.safetensors.index.json", mutate_json,
                            lambda: load_bert(Bert, "shards")),
    "log.jsonl": ("plain/log.jsonl", mutate_json, lambda: draw_log("plain")),
    "state.pt": ("plain/last/state.pt", mutated_state, lambda: resume(Path("plain"))),
    "pretrain.json": ("pretrained/pretrain.json", mutate_json,
                      lambda: pretraining_run.open_run(Path("pretrained"), {})),
    "laser's outputs": ("plain/laser/outputs.safetensors", mutate_bytes, lambda: sweep_again()),
    "compress.json": ("plain/compression/compress-fc_in-fc_out.json", mutate_json,
                      lambda: rows_of(Path("plain/compression/compress-fc_in-fc_out.json"))),
    "an attack's records": ("plain/attack/sst-multistep.jsonl", mutate_json,
                            lambda: read_attack(Path("plain/attack/sst-multistep.jsonl"))),
    **{f"data of {task}": (f"data/{TASKS[task].files['train']}", mutate_table,
                           lambda task=task: read_table(Path("data") / TASKS[task].files["train"],
                                                        task))
       for task in ("sst", "para", "sts")},
    **{f"data of {task}": (f"glue/{TASKS[task].files['train']}", mutate_table,
                           lambda task=task: read_table(Path("glue") / TASKS[task].files["train"],
                                                        task))
       for task in ("rte", "mnli", "cola", "qqp", "stsb")},
}
SLOW = {"predictions": 50, "laser's outputs": 20, "a compared run.json": 10, "metrics.json": 10,
        "state.pt": 10, "log.jsonl": 10}                     # so many times fewer; those of runs: 5


def try_reader(name, seeds):
    """Read a file after each mutation. An error names reader and seed."""
    file, mutate, read = READERS[name]
    path = Path(file)
    original = path.read_bytes()
    assert not refused(read), name
    try:
        for seed in seeds:
            path.write_bytes(mutate(random.Random(seed), original))
            try:
                refused(read)
            except BaseException as error:
                raise AssertionError(f"{name}, seed {seed}: {error!r}") from error
    finally:
        path.write_bytes(original)


def number_of(name, usual):
    of_a_run = "safetensors" in name or "run.json" in name or name.startswith("model/")
    return max(2, int(os.environ.get("MUTATIONS", usual)) // SLOW.get(name, 5 if of_a_run else 1))


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused_in_a_sentence(place, name):
    try_reader(name, range(number_of(name, 20)))


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_many_mutated_files_are_read_or_refused(place, name):
    try_reader(name, range(1000, 1000 + number_of(name, 1250)))


# ---- flags: command → what is always given, and its flags come from its own parser

COMMANDS = {
    "train": (train_multitask.main, ("--bert", "bert", "--data", "data", *SETTINGS)),
    "evaluate": (evaluate.main, ("plain", "--limit", "4")),
    "evaluate a LoRA": (evaluate.main, ("lora", "--limit", "4")),
    "evaluate exits": (evaluate.main, ("exits", "--limit", "4")),
    "evaluate experts": (evaluate.main, ("experts", "--limit", "4")),
    "compare": (evaluate.main, ("--compare", "plain", "lora")),
    "pretraining": (pretraining, ("--text", "text.txt", "--init", "bert", "--steps", "1",
                                  "--out", "out", "--heldout", "0.2")),
    "attack": (attack.__main__.main, ("plain", "--limit", "3", "--steps", "1")),
    "compression": (compression, ("plain", "--limit", "4", "--methods", "svd", "--ratios", "5")),
    **{f"laser {name}": (laser, (name, "plain", *more)) for name, more in {
        "sweep": ("--limit", "4", "--out", "out", "--keep", "0.5", "--matrices", "fc_in"),
        "search": ("--limit", "4", "--out", "out", "--keep", "0.5", "--matrices", "fc_in",
                   "--splits", "1"),
        "apply": ("--limit", "4", "--laser", "0:fc_in:0.3", "--out", "out")}.items()},
    "experts split": (experts, ("split", "plain", "--out", "out", "--limit", "4", "--epochs", "1")),
    "experts curve": (experts, ("curve", "experts", "--limit", "4", "--taus", "0.5",
                                "--norms", "router", "--passes", "1")),
    "experts relu": (experts, ("relu", "plain", "--out", "out", "--epochs", "1")),
    "early_exit train": (early_exit, ("train", "plain", "--out", "out", "--examples", "10")),
    "early_exit curve": (early_exit, ("curve", "exits", "--limit", "8", "--repeats", "1")),
    "early_exit netcut": (early_exit, ("netcut", "single", "--out", "out", "--epochs", "0.1")),
    "pruning prune": (pruning, ("prune", "plain", "--out", "out", "--heads", "4",
                                "--examples", "4")),
    "pruning importance": (pruning, ("importance", "plain", "--examples", "4")),
    "pruning report": (pruning, ("report", "plain")),
    "lora merge": (lora, ("merge", "lora", "--out", "out", "--task", "sst")),
}
LIKELY = {                                                   # values that a flag may well take
    "tasks": ("sst", "sst,sts"), "task": ("sst",), "head": ("linear", "mlp", "sst=mlp"),
    "out": ("out", "new"), "data": ("data",), "adapter": ("sst=lora/adapters/sst",),
    "laser": ("0:fc_in:0.5",), "exit": ("0", "0.5"), "rule": ("max", "top-k"), "text": ("a film",),
    "pair": ("a film",), "predictions": ("p",), "report": ("r.html",), "layers": ("all", "0"),
    "matrices": ("all", "key", "embeddings"), "metric": ("sst", "mean"), "lm": ("bert",),
    "methods": ("svd", "bits,prune", "weighted"), "judge": ("bert",), "csv": ("t.csv",),
    "method": ("hotflip", "gumbel", "sdn"), "lora_targets": ("query", "fc_in,key"),
    "adapters": ("shared", "sst=a,para=b,sts=b"), "sparsity": ("relu-l1:1e-3", "none"),
    "keep_heads": ("4", "0.5"), "mask_heads": ("0:1",), "heads": ("4",), "neurons": ("64",),
    "remove": ("0:1", "1"), "from_run": ("plain", "lora", "exits", "factored"), "init": ("bert",),
    "teacher": ("bert", "tiny"), "ratios": ("5",), "keep": ("0.5",), "norms": ("router", "true"),
    "taus": ("0.5",), "save": ("new",), "run": ("plain", "lora"), "train_tasks": ("sst",)}
NUMBERS = ("0", "1", "2", "3", "-1", "0.5", "1" + "0" * 30, "4294967296", "1e308")
WORDS = ("", *NUMBERS, "1.5", "nan", "inf", "1e400", "x", "sst", "sst,sts",
         "para", "0:1", "0:fc_in:0.5", "٣", "0_1", "é→", "bad\udcff", "y" * 70000, "..", ".",
         "plain", "lora", "/proc/nowhere", "data", "bert", "all", "shared", "none", "sst=mlp",
         "out", "a b", "lora/adapters/sst", "sst=lora/adapters/sst", "0,1", "svd",
         "\x1b[2J", "a\nb")


def flags_of(main, given):
    """→ the actions of the parser that a command makes."""
    found = []

    def keep(parser, *_):
        found.extend(parser._actions)
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch, suppress(SystemExit):
        patch.setattr(Parser, "parse_known_args", keep)
        main(list(given))
    return [action for action in found if action.option_strings and action.dest != "help"]


def try_command(script, name, seed):
    """Call a command with one to four random flags: exit code 0, or 2 with one sentence."""
    main, given = COMMANDS[name]
    rng, words = random.Random(f"{name} {seed}"), list(given)
    actions = flags_of(main, given)
    for action in rng.sample(actions, min(rng.randint(1, 4), len(actions))):
        words.append(rng.choice(action.option_strings))
        if action.nargs != 0:
            fits = LIKELY.get(action.dest) or [c for c in action.choices or () if c != "cuda"]
            words.append(str(rng.choice(list(fits) if fits and rng.random() < 0.8 else
                                        NUMBERS if action.type in (int, float) else WORDS)))
    if rng.random() < 0.1:
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    words = [f"out{seed}" if word == "out" else word for word in words]
    with time_limit():
        code, out, err = script(main, *words)
    said = err.rsplit("\r", 1)[-1].rstrip("\n").rsplit("\n", 1)[-1]
    assert "Traceback" not in err and code in (0, 2), (words, code, err[-3000:])
    assert code == 0 or (said.startswith("error: ") and 10 < len(said) < 2500), (words, code, err)
    if code == 0:
        assert not {"nan", "inf", "1e400", "0_1", "٣", "bad\udcff"} & {
            word for flag, word in zip(words, words[1:]) if flag in NUMERIC}, words


NUMERIC = {"--lr", "--head-lr", "--epochs", "--limit", "--seed", "--batch-size", "--steps", "--l2",
           "--clip", "--warmup", "--weight-decay", "--examples", "--ratios", "--keep", "--beta",
           "--depth-lr", "--splits", "--passes", "--repeats", "--width", "--taus", "--tau"}


@pytest.fixture
def kept(place, tmp_path, monkeypatch):
    """A fresh copy of the folder, which commands may change."""
    shutil.copytree(place, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(Figure, "savefig", lambda *arguments, **options: None)


@pytest.mark.parametrize("name", COMMANDS)
def test_random_flags_are_taken_or_refused_in_a_sentence(kept, script, name):
    try_command(script, name, 0)


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_many_random_flags_are_taken_or_refused(kept, script, name):
    for seed in range(1, 1 + int(os.environ.get("MUTATIONS", 24))):
        try_command(script, name, seed)
