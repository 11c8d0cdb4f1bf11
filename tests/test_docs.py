"""README.md and the pages of docs/: links lead somewhere, commands have flags that exist, quoted
code is the source, snippets run, and every size that can be checked holds."""

import ast
import csv
import importlib
import io
import re
import shlex
import subprocess
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
import torch

import lora
import multitask.glue  # noqa: F401  the table of tasks holds GLUE's
from bert import Bert, BertConfig
from compression.stored import CODECS
from laser.reduce import rank_of
from multitask.methods import settings_class
from multitask.model import build_model
from multitask.recipes import RECIPES
from multitask.runs import FILES
from multitask.tasks import TASKS
from tools.quote_code import QUOTATION, pages, source_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in pages()}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OTHER_FLAGS = {"--extra-index-url", "--nproc-per-node", "--nnodes", "--node-rank", "--rdzv-backend",
               "--rdzv-endpoint"}                            # pip's and torchrun's
MINILM = dict(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)


@cache
def tracked():
    """→ {file of the project}, {folder}"""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: which files belong to the project is not known")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True,
                           check=True).stdout.splitlines()
    return set(files), {str(folder) for file in files for folder in Path(file).parents}


def without_code(text):
    return FENCE.sub("", text)


def inline_code(text):
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_code(text))]


# ------------------------------------------------------------------------------------------ links


def headings(text):
    return {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
            for line in without_code(text).splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page, link", [
    (page, link) for page, text in PAGES.items()
    for link in dict.fromkeys(re.findall(r"\]\(([^)]+)\)", without_code(text)))
    if not link.startswith("http")])
def test_a_link_leads_to_a_file_of_the_project_or_to_a_heading(page, link):
    files, folders = tracked()
    path, _, heading = link.partition("#")
    target = str((ROOT / page).parent.joinpath(path).resolve().relative_to(ROOT)) if path else page
    assert target in files | folders, f"{page} links to {path}, which is no file of the project"
    if heading:
        assert heading in headings(PAGES[target]), f"{target} has no heading {heading}"


def test_readme_leads_to_every_page_and_folder():
    links = {link.strip("/") for link in re.findall(r"\]\(([^)#]+)", PAGES["README.md"])}
    files, _ = tracked()
    folders = {file.partition("/")[0] for file in files if "/" in file and file[0] != "."}
    assert not {page for page in PAGES if page != "README.md"} - links
    assert not folders - links


# --------------------------------------------------------------------------------------- commands


def commands(text):
    """Yield every command `python …` or `torchrun …` of a page as a list of its words."""
    shell = [code for language, code in FENCE.findall(text) if language == "sh"]
    lines = [line for code in shell for line in code.replace("\\\n", " ").splitlines()]
    for line in (*lines, *inline_code(text)):
        if re.match(r"(python|torchrun) (?!-c|-m venv|-m METHOD)", line):
            yield shlex.split(line, comments=True)


def script_of(words):
    """→ the script of a command ("train_multitask.py", "-m laser sweep"), and its arguments."""
    if words[1] == "-m":
        has_commands = words[2] in ("course", "early_exit", "experts", "lora", "laser", "pruning")
        return " ".join(words[1:3 + has_commands]), words[3 + has_commands:]
    place = next(n for n, word in enumerate(words) if word.endswith(".py"))
    return words[place], words[place + 1:]


@cache
def help_of(script):
    """What the script's --help says; of a benchmark, a tool and a test, its source."""
    if "/" in script:
        return (ROOT / script).read_text(encoding="utf-8")
    name, *command = script.removeprefix("-m ").removesuffix(".py").split()
    module = importlib.import_module(f"{name}.__main__" if script.startswith("-m") else name)
    said = io.StringIO()
    with pytest.raises(SystemExit), redirect_stdout(said):
        module.main([*command, "--help"])
    return said.getvalue()


def flags_of_diffs(page):
    """The flags of the settings that the diffs of a page add."""
    names = re.findall(r"^\+    (\w+): \w+ = setting\(", PAGES[page], re.MULTILINE)
    return {"--" + name.replace("_", "-") for name in names}


def flags(words):
    return [flag for word in words for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", word)]


@pytest.mark.parametrize("page, command", [
    (page, shlex.join(words)) for page, text in PAGES.items() for words in commands(text)])
def test_the_flags_of_a_command_exist(page, command):
    script, arguments = script_of(shlex.split(command))
    for word in arguments:
        nested = " " in word and script.startswith("benchmarks")         # --flags "--lora 8"
        known = help_of("train_multitask.py" if nested else script)
        for flag in set(flags([word])) - flags_of_diffs(page):
            assert re.search(rf"{flag}(?![\w-])", known), f"{script} has no {flag}"


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_that_a_page_names_exists_and_takes_the_values_that_it_names(page):
    scripts = {script_of(words)[0] for text in PAGES.values() for words in commands(text)}
    known = "\n".join(help_of(script) for script in sorted(scripts))
    training = help_of("train_multitask.py")
    for code in inline_code(PAGES[page]):
        for flag in set(flags([code])) - OTHER_FLAGS - flags_of_diffs(page):
            assert re.search(rf"{flag}(?![\w-])", known), f"no script has {flag}"
        for values in re.findall(r"--[a-z-]+ ([\w-]+(?:\\?\|[\w-]+)+)", code):
            for value in re.split(r"\\?\|", values):
                assert re.search(rf"(?<![\w-]){value}(?![\w-])", training), f"{code}: no {value}"


@pytest.mark.parametrize("page", PAGES)
def test_every_recipe_that_a_page_names_exists(page):
    named = re.findall(r"--recipe ([a-z][\w-]*)", PAGES[page])
    named += re.findall(r"^\| `((?:mb|baseline|lora|glue)[\w-]*)`", PAGES[page], re.MULTILINE)
    assert set(named) <= set(RECIPES)


# ------------------------------------------------------------------------------------------- code


def test_every_promise_is_held_by_a_test_that_exists():
    links = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)",
                       (ROOT / "docs/promises.md").read_text(encoding="utf-8"))
    assert len(links) > 25
    for name, file in links:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{name} in {file}"



@pytest.mark.parametrize("file, names, code", [
    quotation for text in PAGES.values() for quotation in QUOTATION.findall(text)])
def test_quoted_code_is_the_source(file, names, code):
    assert code == source_of(file, names), "python tools/quote_code.py copies it again"


def test_every_marker_of_code_has_its_block():
    for page, text in PAGES.items():
        assert text.count("<!-- code:") == len(QUOTATION.findall(text)), page


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/export.md"])
def test_snippets_run(page, tmp_path, monkeypatch):
    """Those of docs/export.md: test_export.py."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, code in FENCE.findall(PAGES[page]):
        if language == "python":
            exec(code, names)


def test_the_page_of_methods_names_all_that_a_binding_may_define():
    source = (ROOT / "multitask" / "methods.py").read_text(encoding="utf-8")
    used = {node.args[1].value for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "parts"}
    table = PAGES["docs/methods.md"].partition("## The binding")[2].partition("## The commands")[0]
    assert used and used == set(re.findall(r"^\| `(\w+)", table, re.MULTILINE))


# ------------------------------------------------------------------------------------------ sizes


def test_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 170


def promised(pattern):
    """The number that README names in a sentence."""
    return int(re.search(pattern, PAGES["README.md"], re.DOTALL)[1].replace(",", ""))


def product_files():
    files, _ = tracked()
    return [ROOT / file for file in sorted(files) if file.endswith(".py")
            and file.partition("/")[0] not in ("tests", "benchmarks", "docs", "tools")]


def lines_of(file):
    return len(file.read_text(encoding="utf-8").splitlines())


def test_the_page_of_runs_names_all_that_a_run_holds():
    text = (ROOT / "docs" / "multitask.md").read_text(encoding="utf-8")
    table = text[text.index("## A run is a folder"):text.index("One process writes a run.")]
    names = {*FILES[""], *(f"{place.partition('/')[0]}/" for place in FILES if place)}
    assert not [name for name in names if f"`{name}" not in table]


def test_the_product_is_as_small_as_readme_says():
    sizes = {str(file.relative_to(ROOT)): lines_of(file) for file in product_files()}
    largest = promised(r"no file over\s+(\d+)")
    assert sum(sizes.values()) <= promised(r"at most\s+([\d,]+)\s+lines of Python")
    for folder, most in {"bert/": promised(r"encoder has\s+([\d,]+)"),
                         "course/": promised(r"course kit\s+([\d,]+)")}.items():
        assert sum(n for file, n in sizes.items() if file.startswith(folder)) <= most, folder
    assert not {file: lines for file, lines in sizes.items() if lines > largest}


def test_no_function_is_longer_than_readme_says():
    longest = promised(r"no function over\s+(\d+)")
    found = {f"{file.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
             for file in product_files() for node in ast.walk(ast.parse(file.read_text("utf-8")))
             if isinstance(node, ast.FunctionDef)}
    assert not {name: lines for name, lines in found.items() if lines > longest}


def test_files_are_read_in_about_the_minutes_that_readme_says():
    table = re.findall(r"^\| (\d+) \| (\[.*?) \|", PAGES["README.md"], re.MULTILINE)
    assert table
    for minutes, cell in table:
        lines = sum(lines_of(ROOT / path) for path in re.findall(r"\]\(([^)]+)\)", cell))
        assert 8 <= lines / int(minutes) <= 25, f"{cell}: {lines} lines in {minutes} minutes"


def test_readme_counts_the_worked_examples():
    assert "eight\nworked examples" in PAGES["README.md"]
    assert len([language for language, _ in FENCE.findall(PAGES["docs/extend.md"])
                if language == "diff"]) == 8


def test_the_sample_has_the_rows_that_readme_says():
    rows = promised(r"three tasks of ([\d,]+) training rows")
    for task in ("sst", "para", "sts"):
        with open(ROOT / "data" / TASKS[task].files["train"], encoding="utf-8", newline="") as file:
            assert len(list(csv.reader(file, delimiter="\t"))) == rows + 1       # and a header


def meta_bert(**shape):
    """A Bert without memory for its weights."""
    with torch.device("meta"):
        return Bert(BertConfig(**shape))


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def adapter_size(rank, *targets, kind="lora", layernorms=False):
    bert = meta_bert(**MINILM)
    lora.attach(bert, targets or ("query", "key", "value", "attention_output"), rank, ("a",),
                layernorms=layernorms, kind=kind)
    return sum(p.numel() for p in lora.adapter_parameters(bert, "a").values())


def trained(recipe):
    """Weights that a recipe without adapters trains, of MiniLM's shape."""
    settings = settings_class()(**RECIPES[recipe].settings)
    with torch.device("meta"):
        model = build_model(Bert(BertConfig(**MINILM)), settings)
    encoder = 0 if settings.freeze else sum(
        count(bert) - count(bert.pooler) for bert in model.encoders.values())
    return encoder + count(model.heads)


def head_size():
    with torch.device("meta"):
        return count(build_model(meta_bert(**MINILM), settings_class()()).heads)


def factored_size(keep=0.3):
    """All FFN matrices of MiniLM as two factors."""
    shape, matrices = (384, 1536), 12
    return count(meta_bert(**MINILM)) + matrices * (
        rank_of(keep, shape) * sum(shape) - shape[0] * shape[1])


def adapters_share():
    """Three adapters of lora-best as a share of the encoder, as in "4.4 %"."""
    return f"{300 * adapter_size(8, *LORA_BEST) / count(meta_bert(**MINILM)):.1f} %"


def millions(number):
    return f"{number / 1e6:.2f} M"


LORA_BEST = ("query", "key", "value", "attention_output", "fc_in", "fc_out")
SIZES = [                                                    # page, what it says, the number
    ("README.md", "{} tasks,", lambda: len(TASKS)),
    ("README.md", "{} recipes", lambda: len(RECIPES)),
    ("README.md", "{} ways to store matrices", lambda: {9: "Nine"}.get(len(CODECS))),
    ("README.md", "{} of the encoder's weights", adapters_share),
    ("docs/multitask.md", "There are {}.", lambda: len(TASKS)),
    ("docs/multitask.md", "the {} recipes", lambda: len(RECIPES)),
    ("docs/lora.md", "base {:,}", lambda: count(meta_bert(**MINILM))),
    ("docs/lora.md", "heads {:,}", head_size),
    ("docs/lora.md", "adapter sts {:,}", lambda: adapter_size(8, *LORA_BEST)),
    ("docs/lora.md", "| {:,}, 4.4 %", lambda: 3 * adapter_size(8, *LORA_BEST)),
    ("docs/lora.md", ", {} of the encoder | 2,695 |", adapters_share),
    ("docs/lora.md", "| {:,} | .495", lambda: adapter_size(15)),
    ("docs/lora.md", "with {} thousand adapted numbers", lambda: 3 * adapter_size(15) // 1000),
    ("docs/lora.md", ".664 ±.004 | {:,} |", lambda: adapter_size(8)),
    ("docs/lora.md", ".647 ±.004 | {:,} |", lambda: adapter_size(24, kind="xs-out")),
    ("docs/laser.md", "stores {} parameters", lambda: millions(factored_size())),
    ("docs/laser.md", "in place of {}", lambda: millions(count(meta_bert(**MINILM)))),
    ("docs/compression.md", "as it is | {:,} |", lambda: 4 * 12 * 384 * 1536),
    ("docs/compression.md", "as it is | {:,} |",
     lambda: 4 * meta_bert(**MINILM).word_embeddings.weight.numel()),
    ("docs/pruning.md", "| {:,} |",
     lambda: adapter_size(4, layernorms=True) + 384 * 2 + 2),            # and a head of 2 classes
    ("docs/pretraining.md", "4 layers, width 128, 4 heads, {} parameters",
     lambda: millions(count(Bert.from_pretrained("tiny")))),
]


def rows_of_recipes(page):
    """→ {recipe: the cells of its row}"""
    rows = [line.split(" | ") for line in PAGES[page].replace("|  |", "| |").splitlines()]
    return {row[0].strip("|` "): row for row in rows if row[0].strip("|` ") in RECIPES}


@pytest.mark.parametrize("page", ["docs/multitask.md", "docs/lora.md"])
def test_a_recipes_row_holds_what_the_paper_printed(page):
    rows = rows_of_recipes(page)
    for recipe, cells in rows.items():
        for task, printed in RECIPES[recipe].published.items():
            cell = dict(zip(("sst", "para", "sts"), cells[-3:]))[task].strip("| ")
            assert abs(float(cell) - printed) <= 0.0005 + 1e-9, recipe
    assert len(rows) > 4


def test_the_pruning_page_holds_what_the_paper_printed():
    for name, recipe in (("full", "glue-full"), ("LoRA", "glue-lora"),
                         ("Prune-LoRA", "glue-prune-lora")):
        scores = " | ".join(f"{RECIPES[recipe].published[task]:.4f}"[1:]
                            for task in ("mnli", "rte", "mrpc", "sst2", "qnli", "wnli"))
        assert f"| {name} | {scores} |" in PAGES["docs/pruning.md"]


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith(("mb", "base"))])
def test_a_recipe_trains_as_many_weights_as_its_row_says(recipe):
    assert rows_of_recipes("docs/multitask.md")[recipe][5] == millions(trained(recipe))


@pytest.mark.parametrize("page, says, number", SIZES)
def test_a_size_that_a_page_names_is_right(page, says, number):
    text = " ".join(says.format(number()).split())
    assert text in " ".join(PAGES[page].split())


def test_the_shape_of_the_tiny_checkpoint_is_what_the_pages_say():
    config = Bert.from_pretrained("tiny").config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (4, 128, 4)
    assert "4 layers, width 128" in PAGES["README.md"]
