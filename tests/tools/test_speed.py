"""benchmarks/speed.py without its measurements: its rows, tables and picture, docs/speed.md, and
that the step that it times is the step of train_multitask.py."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import write_course_data

import train_multitask
from benchmarks import side_by_side, speed, speed_report
from benchmarks.bench import batches
from bert import Bert, Tokenizer, UserError
from multitask import runs
from multitask.evaluation import load_split
from multitask.model import build_model
from multitask.schedule import BatchSampler
from multitask.settings import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "speed.md"
ENVIRONMENT = {"python": "3.12", "torch": "2.9", "transformers": "4.50", "peft": "0.15",
               "tokenizers": "0.21", "torch_threads": 2, "tokenizer_threads": 2, "cores": 2,
               "processor": "a processor", "weights": "minilm", "quick": False}
TIMES = {"ours": [0.5, 0.4, 0.5], "theirs": [1.0, 1.2, 0.9]}         # ratios 2, 3 and 1.8


def made_up(**environment):
    rows = [speed_report.speed_row("training", "a step of 32", TIMES, 32),
            speed_report.time_row("cost", "surgery", TIMES, peer_name="a plain step"),
            speed_report.make_row("growth", "1,000 sentences", "s", (2, None), [1.0],
                                  note="5 µs a token")]
    return {"environment": ENVIRONMENT | environment,
            "rows": [{"part": part} | row for part, row in zip(speed.PARTS, rows)]}


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "speed.json"
    speed_report.write_report(path, made_up())
    return path


def test_a_ratio_is_the_median_of_the_ratios_of_pairs():
    faster, cost, _ = made_up()["rows"]
    assert (faster["ratio"], faster["min"], faster["max"], faster["pairs"]) == (
        2.0, pytest.approx(1.8), pytest.approx(3.0), 3)
    assert (faster["ours"], faster["peer"]) == (64.0, 32.0)              # examples a second
    assert cost["ratio"] == 0.5 and cost["ours"] == 500.0                # of time; milliseconds


def test_the_tables_of_docs_come_from_the_json(report, tmp_path, monkeypatch):
    page = Path(shutil.copy(PAGE, tmp_path / "speed.md"))
    monkeypatch.setattr(speed, "PAGE", page)
    before = page.read_text(encoding="utf-8")
    speed.main(["--docs", str(report)])
    after = page.read_text(encoding="utf-8")
    assert ("| a step of 32 | examples/s | 64.0 | 32.0, transformers | **2.00×** (3 pairs, 1.80 to "
            "3.00) |") in after
    assert "| 1,000 sentences | s | 2 |  | **1.00×**; 5 µs a token |" in after
    start, end = "<!-- speed: tables -->", "<!-- speed: end -->"
    assert after.partition(start)[0] == before.partition(start)[0]
    assert after.partition(end)[2] == before.partition(end)[2]
    speed.main(["--docs", str(report)])                                  # a second time: the same
    assert page.read_text(encoding="utf-8") == after


def test_the_page_has_the_markers_and_names_all_parts():
    text = PAGE.read_text(encoding="utf-8")
    assert len(speed_report.MARKED.findall(text)) == 1
    assert not {part for part in speed.PARTS if f"`{part}`" not in text}


@pytest.mark.parametrize("change, says", [
    (lambda report: report["environment"].update(quick=True), "of --quick"),
    (lambda report: report["rows"][0].update(ratio="2"), "rows[0].ratio is '2'"),
    (lambda report: report["rows"][0].update(group="spee"), "must be one of")])
def test_figures_that_are_none_are_refused(report, tmp_path, change, says):
    content = made_up()
    change(content)
    report.write_text(json.dumps(content), encoding="utf-8")
    page = Path(shutil.copy(PAGE, tmp_path / "speed.md"))
    with pytest.raises(UserError) as error:
        speed_report.write_docs(report, page)
    assert says in str(error.value)
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_a_page_without_markers_is_refused(report, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no markers\n", encoding="utf-8")
    with pytest.raises(UserError, match="speed: tables"):
        speed_report.write_docs(report, page)


def test_some_parts_keep_the_rows_of_the_others_in_the_same_environment(report):
    kept = speed.rows_to_keep(report, ENVIRONMENT, ["base"], every=False)
    assert [row["part"] for row in kept] == ["training", "inference"]
    assert not speed.rows_to_keep(report, ENVIRONMENT, list(speed.PARTS), every=True)
    with pytest.raises(UserError, match="torch_threads: 2, now 1"):
        speed.rows_to_keep(report, ENVIRONMENT | {"torch_threads": 1}, ["base"], every=False)


def test_the_terminal_table_and_the_picture_show_every_row(report, tmp_path):
    rows = made_up()["rows"]
    for members in speed_report.grouped(rows).values():
        assert members[0]["name"] in speed_report.terminal_table(members)
    speed_report.draw(speed_report.read_report(report), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_all_parts_take_less_than_a_quarter_of_an_hour():
    assert sum(planned for _, planned, _ in speed.PARTS.values()) < 14 * 60


def test_a_part_that_does_not_exist_is_a_sentence():
    with pytest.raises(UserError, match="did you mean"):
        speed.main(["--parts", "trainin"])


def test_the_step_that_is_timed_is_that_of_the_training_script(checkpoint, tmp_path):
    data = write_course_data(tmp_path / "data")
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--tasks", "sst",
                          "--steps", "2", "--batch-size", "8", "--lr", str(side_by_side.LR),
                          "--warmup", "0", "--no-decay", "--out", str(tmp_path / "run")])
    trained, *_ = runs.open_run(tmp_path / "run")

    settings = Settings(bert=str(checkpoint), data=str(data), tasks="sst")
    split = load_split("sst", "train", data, Tokenizer.from_pretrained(checkpoint), settings)
    torch.manual_seed(settings.seed)                         # of the head
    side = side_by_side.Side(build_model(Bert.from_pretrained(checkpoint), settings), split)
    before = {name: tensor.clone() for name, tensor in side.model.state_dict().items()}
    order = BatchSampler(len(split), 8, settings.seed)
    torch.manual_seed(settings.seed)                         # of dropout
    for _ in range(2):
        side.step(next(order))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, side.model.state_dict()[name]), name
    assert any(not torch.equal(before[name], tensor)
               for name, tensor in trained.state_dict().items())


def test_batches_of_like_length_hold_all_sentences_once(checkpoint, tmp_path):
    data = write_course_data(tmp_path / "data")
    split = load_split("sst", "train", data, Tokenizer.from_pretrained(checkpoint), Settings())
    lengths, count = [len(ids) for ids in split.segments[0][0]], len(split) // 4
    found = batches(split, 4, by_length=True)
    chunks = sorted([lengths[i] for i in next(found)] for _ in range(count))
    assert all(max(a) <= min(b) for a, b in zip(chunks, chunks[1:]))
    found = batches(split, 4)
    indices = [i for _ in range(count) for i in next(found)]
    assert len(set(indices)) == 4 * count
