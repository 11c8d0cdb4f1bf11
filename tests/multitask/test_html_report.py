"""evaluate.py RUN --report FILE: one HTML page that holds all it shows."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

import evaluate
import train_multitask
from multitask.metrics import accuracy
from multitask.standard_errors import bootstrap, fingerprint_of


class Page(HTMLParser):
    """Collects the tags, their attributes, the text of all table cells, and what is left open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.cells, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "td":
            self.cells.append("")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    path = tmp_path_factory.mktemp("page") / "to" / "report.html"
    evaluate.main([str(run), "--report", str(path)])
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    return path.read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_from_outside(page):
    found = Page(page)
    assert not found.open and not {"script", "link", "iframe", "a"} & set(found.tags)
    sources = [value for name, value in found.attributes if name in ("src", "href", "srcset")]
    assert len(sources) >= 4 and all(s.startswith("data:image/png;base64,") for s in sources)
    assert "url(" not in page and "http:" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page and "width=device-width" in page and "@media print" in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_has_the_scores_of_the_run(page, run):
    cells = Page(page).cells
    for task, metrics in json.loads((run / "metrics.json").read_text()).items():
        for metric, value in metrics.items() if isinstance(metrics, dict) else ():
            place = next(n for n, cell in enumerate(cells)
                         if cell == task and cells[n + 1] == metric)
            assert cells[place + 2] == f"{value:.3f}" and 0 <= float(cells[place + 3]) < 0.5
            assert cells[place + 5] == "16"


def test_each_example_is_counted_once_in_a_confusion_matrix(page):
    section = page[page.index("<h2>sst</h2>"):]
    matrix = section[:section.index("</table>")]
    assert sum(int(count) for count in re.findall(r">(\d+)<br>", matrix)) == 16
    assert matrix.count("<tr>") == 6                         # a header, and a row of each class


def test_wrong_answers_are_wrong_and_the_most_certain_comes_first(page):
    section = page[page.index("<h2>sst</h2>"):page.index("<h2>para</h2>")]
    cells = Page(section[section.index("<h3>"):]).cells
    rows = [cells[n:n + 5] for n in range(0, len(cells), 5)]             # id, text, label, …
    assert rows and all(label != said for _, _, label, said, _ in rows)
    certain = [max(map(float, re.findall(r"[\d.]+", odds))) for *_, odds in rows]
    assert certain == sorted(certain, reverse=True)


def write_sst(folder, text):
    folder.mkdir()
    for split in ("train", "dev"):
        lines = [f"{n}\t{split}{n}\t{text}\t{n % 5}\n" for n in range(6)]
        (folder / f"ids-sst-{split}.csv").write_text("\tid\tsentence\tsentiment\n" + "".join(lines))
    return folder


def test_a_script_in_the_data_is_only_shown(checkpoint, tmp_path, script):
    attack = '<script>alert(1)</script> <img src=x onerror=alert(1)> & "good"'
    data = write_sst(tmp_path / "d<b>ata", attack.replace('"', "'"))
    assert script(train_multitask.main, "--bert", checkpoint, "--data", data, "--tasks", "sst",
                  "--steps", 1, "--out", tmp_path / "run")[0] == 0
    code, out, err = script(evaluate.main, tmp_path / "run", "--report", tmp_path / "page.html",
                            "--text", "<script>alert(2)</script>")
    assert code == 0 and "page.html" in out, err
    page = (tmp_path / "page.html").read_text()
    found = Page(page)
    assert "script" not in found.tags and "b" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert attack.replace('"', "'") in found.cells


@pytest.mark.parametrize("flags", [
    ("--tasks", "sts,sst", "--lora", 2, "--pairs", "separate", "--head", "sts=cosine"),
    ("--tasks", "sts", "--encoders", "separate", "--pooling", "mean"),
    ("--tasks", "para", "--keep-heads", "0.5", "--surgery", "none")])
def test_runs_of_every_kind_are_reported(checkpoint, data, tmp_path, script, flags):
    code, _, err = script(train_multitask.main, "--bert", checkpoint, "--data", data, *flags,
                          "--steps", 1, "--out", tmp_path / "run")
    assert code == 0, err
    code, _, err = script(evaluate.main, tmp_path / "run", "--report", tmp_path / "page.html",
                          "--limit", 5)
    assert code == 0, err
    found = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert found.tags.count("img") >= 2 and not found.open


@pytest.mark.parametrize("flags, says", [
    (("--split", "test"), "leave out --split test"), (("--json",), "--json"),
    (("--text", " "), "empty"), (("--data", "nowhere"), "is not a folder"),
    (("--tasks", "stt"), "did you mean sts")])
def test_what_cannot_be_reported_is_a_sentence(run, tmp_path, script, flags, says):
    code, _, err = script(evaluate.main, run, "--report", tmp_path / "page.html", *flags)
    assert code == 2 and says in err and not (tmp_path / "page.html").exists()


def test_the_standard_error_of_an_accuracy_is_that_of_a_proportion():
    predictions = [1.0] * 300 + [0.0] * 100
    draws = bootstrap(accuracy, predictions, [1.0] * 400, "ab")
    assert draws.mean() == pytest.approx(0.75, abs=0.005)
    assert draws.std() == pytest.approx((0.75 * 0.25 / 400) ** 0.5, rel=0.15)
    again = bootstrap(accuracy, predictions, [1.0] * 400, "ab")
    assert (draws == again).all()
    assert (draws != bootstrap(accuracy, predictions, [1.0] * 400, fingerprint_of([]))).any()


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)


def opened(path, profile):
    """A page in a headless browser without a network → its DOM, and what its console says."""
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0", "--dump-dom",
         path.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_a_browser_opens_the_page_without_errors_or_outside_requests(page, tmp_path):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    dom, console = opened(tmp_path / "page.html", tmp_path / "profile")
    assert not console and "</html>" in dom
    assert Page(dom).tags.count("img") == page.count("<img") and dom.count("<h2>") >= 6
    asking = page.replace("<h1>", '<img src="http://example.com/a.png"><h1>')
    (tmp_path / "asking.html").write_text(asking, encoding="utf-8")
    _, console = opened(tmp_path / "asking.html", tmp_path / "profile")
    assert "Content Security Policy" in "".join(console)     # so the console tells of requests
