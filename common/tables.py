"""Tables: for the terminal, in Markdown, and as CSV files."""

import csv
import io

from bert.files import atomic_write


def text_table(rows, left=1):
    """Rows of texts, the header first → aligned lines; the first `left` columns are flush left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) if n < left else cell.rjust(width)
                               for n, (cell, width) in enumerate(zip(row, widths))).rstrip()
                     for row in rows)


def format_number(value):
    """1234567 → "1,234,567", 0.51234 → "0.5123"."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def rows_table(rows, left=1):
    """Rows {column: text, number or None} → text_table; the first row has all columns."""
    def text(value):
        return value if isinstance(value, str) else "–" if value is None else format_number(value)

    names = list(rows[0]) if rows else []
    return text_table([names, *([text(row[name]) for name in names] for row in rows)], left)


def markdown_table(rows):
    """Rows of texts, the header first → a table in Markdown."""
    header, *lines = rows
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *lines])


def write_csv(path, rows):
    """Write rows {column: value} as a CSV file. A row may lack columns of another."""
    names = list(dict.fromkeys(name for row in rows[::-1] for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, names, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
