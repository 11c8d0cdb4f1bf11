"""The results of benchmarks/speed.py: rows, their tables, speed.json, the picture, docs/speed.md.

A row is {"part", "group", "name", "unit", "ours", "peer", "peer_name", "ratio", "min", "max",
"pairs", "note"}. `ratio` is the median over all pairs of measurements; GROUPS says what it is."""

import re
import statistics
from pathlib import Path

from bert import UserError
from bert.files import atomic_write, write_json
from bert.json_files import read_json
from common.plots import COLORS, new_figure, save_figure
from common.tables import markdown_table, text_table

GROUPS = {                               # group → (title, what the ratio is)
    "training": ("Training steps", "speed of plainbert / of transformers"),
    "inference": ("Inference and evaluation", "speed of plainbert / of transformers"),
    "methods": ("Methods", "speed of plainbert / of the other way"),
    "cost": ("What methods add", "time of a step with it / without it"),
    "resources": ("Start, memory, operations", "how many times faster or smaller plainbert's is"),
    "limit": ("Share of the limit", "least possible time / time of our step"),
    "growth": ("Growth", "seconds a token, or memory, / of the first size"),
}
ROW = {"part": str, "group": set(GROUPS), "name": str, "unit": str, "ours": float,
       "peer": float | None, "peer_name": str, "ratio": float, "min": float, "max": float,
       "pairs": int, "note": str}
ENVIRONMENT = {"python": str, "torch": str, "transformers": str, "peft": str, "tokenizers": str,
               "torch_threads": int, "tokenizer_threads": int, "cores": int, "processor": str,
               "weights": str, "quick": bool}
REPORT = {"environment": ENVIRONMENT, "rows": list[ROW]}
MARKED = re.compile(r"(<!-- speed: tables -->\n).*?(<!-- speed: end -->\n)", re.DOTALL)


def make_row(group, name, unit, values, ratios, peer_name="transformers", note=""):
    """values: what was measured (ours, the peer's or None). ratios: of all pairs."""
    ours, peer = values
    return {"group": group, "name": name, "unit": unit, "ours": float(ours),
            "peer": None if peer is None else float(peer), "peer_name": peer_name,
            "ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios),
            "pairs": len(ratios), "note": note}


def speed_row(group, name, times, examples, unit="examples/s", **more):
    """A row of speeds. times: {any name: [seconds]} of ours and of the peer, for `examples`."""
    ours, peer = times.values()
    values = [examples / statistics.median(seconds) for seconds in (ours, peer)]
    return make_row(group, name, unit, values, [b / a for a, b in zip(ours, peer)], **more)


def time_row(group, name, times, **more):
    """A row of milliseconds, whose ratio is ours / the peer's, which costs less where it is low."""
    ours, peer = times.values()
    values = [1000 * statistics.median(seconds) for seconds in (ours, peer)]
    return make_row(group, name, "ms", values, [a / b for a, b in zip(ours, peer)], **more)


def short(number):
    """1234.5 → "1,234", 95.93 → "95.9", 0.012345 → "0.0123"; None → "–"."""
    if number is None:
        return "–"
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.3g}"


def ratio_cells(row):
    """→ "1.95×", "27 pairs, 1.52 to 2.17" ("" if there was one pair)."""
    spread = f"{row['pairs']} pairs, {row['min']:.2f} to {row['max']:.2f}"
    return f"{row['ratio']:.2f}×", spread if row["pairs"] > 1 else ""


def grouped(rows):
    """→ {group: its rows}, in the order of GROUPS"""
    found = {group: [row for row in rows if row["group"] == group] for group in GROUPS}
    return {group: members for group, members in found.items() if members}


def terminal_table(rows):
    """Rows of one group → a title and aligned lines."""
    title, meaning = GROUPS[rows[0]["group"]]
    lines = [[title, "unit", "plainbert", "beside it", "ratio", ""]]
    for row in rows:
        peer = "" if row["peer"] is None else f"{short(row['peer'])} ({row['peer_name']})"
        more = "; ".join(text for text in (ratio_cells(row)[1], row["note"]) if text)
        lines.append([row["name"], row["unit"], short(row["ours"]), peer, ratio_cells(row)[0],
                      more])
    return f"{text_table(lines, left=2)}\n  ratio: {meaning}\n"


def docs_tables(report):
    """→ Markdown: the environment in a sentence, and a table for each group."""
    here = report["environment"]
    text = [f"torch {here['torch']}, transformers {here['transformers']}, peft {here['peft']}; "
            f"{here['torch_threads']} threads of torch and {here['tokenizer_threads']} of the "
            f"tokenizers on {here['cores']} CPU cores, for both sides.\n"]
    for group, rows in grouped(report["rows"]).items():
        title, meaning = GROUPS[group]
        lines = [[title, "unit", "plainbert", "beside it", f"ratio: {meaning}"]]
        for row in rows:
            peer = "" if row["peer"] is None else f"{short(row['peer'])}, {row['peer_name']}"
            shown, spread = ratio_cells(row)
            note = f"; {row['note']}" if row["note"] else ""
            lines.append([row["name"], row["unit"], short(row["ours"]), peer,
                          f"**{shown}**{f' ({spread})' if spread else ''}{note}"])
        text.append(markdown_table(lines))
    return "\n".join(text)


def read_report(path):
    return read_json(path, REPORT)


def write_report(path, report):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)


def write_docs(report_path, page):
    """Replace what stands between the two markers of `page` by the tables of a report."""
    report, text = read_report(report_path), page.read_text(encoding="utf-8")
    if report["environment"]["quick"]:
        raise UserError(f"{report_path} is of --quick, whose few repeats are no figures for the "
                        f"docs; run the whole benchmark")
    if len(MARKED.findall(text)) != 1:
        raise UserError(f"{page} must have one pair of the lines <!-- speed: tables --> and "
                        f"<!-- speed: end -->; restore them")
    new = MARKED.sub(lambda found: f"{found[1]}{docs_tables(report)}{found[2]}", text)
    with atomic_write(page) as file:
        file.write(new.encode())


def draw(report, path):
    """Write horizontal bars of all ratios, one panel a group, with a line at 1×."""
    groups = grouped(report["rows"])
    heights = [len(rows) + 1.5 for rows in groups.values()]
    figure = new_figure(9, 0.26 * sum(heights) + 0.4)
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (group, rows), color in zip(panels, groups.items(), COLORS):
        ratios, places = [row["ratio"] for row in rows], range(len(rows))
        spread = [[row["ratio"] - row["min"] for row in rows],
                  [row["max"] - row["ratio"] for row in rows]]
        axes.barh(places, ratios, color=color, alpha=0.6)
        axes.errorbar(ratios, places, xerr=spread, fmt="none", ecolor="black", elinewidth=0.8)
        axes.axvline(1, color="black", linewidth=1)
        right = 1.12 * max([1, *(row["max"] for row in rows)])
        axes.set(xlim=(0, right), yticks=places)
        axes.set_yticklabels([row["name"] for row in rows], fontsize=7)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=7)
        for place, row in zip(places, rows):
            axes.text(row["max"] + 0.01 * right, place, ratio_cells(row)[0], va="center",
                      fontsize=7)
        title, meaning = GROUPS[group]
        axes.set_title(f"{title}: {meaning}", fontsize=8, loc="left")
    save_figure(figure, path, dpi=100)
