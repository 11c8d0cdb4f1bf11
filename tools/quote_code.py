"""Copy the code that README.md and docs/ quote from the source again, after the source changed.

    python tools/quote_code.py

A quotation is a code block below a marker. The marker names a file and functions, methods,
classes or constants of it; the block holds their source without docstrings:

    <!-- code: multitask/pcgrad.py coefficients -->
    ```py
    def coefficients(gram, orders):
        …
    ```

tests/test_docs.py fails where a block differs from the source.
"""

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUOTATION = re.compile(r"<!-- code: (\S+) ([\w. ]+) -->\n```py\n(.*?)```\n", re.DOTALL)


def pages():
    """→ [Path] of README.md and of every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def find_node(tree, dotted_name):
    """→ the node of `function`, `Class`, `Class.method` or `CONSTANT`; or KeyError."""
    for name in dotted_name.split("."):
        named = {node.name: node for node in tree.body if hasattr(node, "name")}
        assigned = {ast.unparse(node.targets[0]): node for node in tree.body
                    if isinstance(node, ast.Assign)}
        tree = (named | assigned)[name]
    return tree


def docstring_lines(node):
    """→ the numbers of all lines of docstrings in the node."""
    inner = [n for n in ast.walk(node) if hasattr(n, "name") and isinstance(
        n, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(n) is not None]
    return {line for n in inner for line in range(n.body[0].lineno, n.body[0].end_lineno + 1)}


def source_of(file, names):
    """→ the source of these names without docstrings; KeyError if one is not in the file."""
    text = (ROOT / file).read_text(encoding="utf-8")
    tree, lines, parts = ast.parse(text), text.splitlines(), []
    for name in names.split():
        node = find_node(tree, name)
        begin = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        skipped = docstring_lines(node)
        kept = [lines[n - 1] for n in range(begin, node.end_lineno + 1) if n not in skipped]
        part = textwrap.dedent("\n".join(kept))
        parts.append(re.sub(r"(class .*:\n)\n+", r"\1", part))       # where its docstring was
    return "\n\n".join(parts) + "\n"


def main():
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = QUOTATION.sub(lambda found: f"<!-- code: {found[1]} {found[2]} -->\n```py\n"
                                          f"{source_of(found[1], found[2])}```\n", old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: quotations copied again")


if __name__ == "__main__":
    main()
