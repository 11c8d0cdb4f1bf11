"""Find functions in source text by dotted names, take their bodies out and put others in."""

import ast
import textwrap
from pathlib import Path
from threading import Lock

from bert.errors import UserError

PARSING = Lock()         # two threads that parse at once can fail in CPython (SystemError)


def parse(source):
    with PARSING:
        return ast.parse(source)


def file_of(root, dotted):
    """"bert.model.FeedForward.activate" → (Path("bert/model.py"), ["FeedForward", "activate"])"""
    parts = dotted.split(".")
    for n in range(len(parts) - 1, 0, -1):
        path = Path(*parts[:n]).with_suffix(".py")
        if (Path(root) / path).is_file():
            return path, parts[n:]
    raise UserError(f"{root} has no file for {dotted}; name a function by folder.file.function")


def find(source, names):
    """→ the node of Class, function; the last of several, as in Python. UserError if there is
    none, or the source is no Python."""
    try:
        node = parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"the file is no Python: {error}") from error
    for name in names:
        found = [child for child in node.body if getattr(child, "name", None) == name
                 and isinstance(child, (ast.ClassDef, ast.FunctionDef))]
        if not found:
            raise UserError(f"there is no {'.'.join(names)} in the file")
        node = found[-1]
    return node


def statements(node):
    """The statements of a function without its docstring."""
    return node.body[ast.get_docstring(node, clean=False) is not None:]


def with_body(source, names, body):
    """→ the source whose function `names` keeps its signature and docstring and has `body`."""
    node, lines = find(source, names), source.splitlines()
    head = node.body[0].end_lineno if len(statements(node)) < len(node.body) else (
        node.body[0].lineno - 1)
    while lines[head - 1].lstrip().startswith("#") or not lines[head - 1].strip():
        head -= 1                                            # a comment may give the answer away
    indented = textwrap.indent(body, " " * (node.col_offset + 4)).splitlines()
    return "\n".join([*lines[:head], *indented, *lines[node.end_lineno:]]) + "\n"


def body_of(source, names, pristine):
    """→ the body that a student gave to the function `names`, as text, preceded by imports that the
    student added to the file. UserError if the signature differs from the pristine source's."""
    node, original = find(source, names), find(pristine, names)
    given, expected = ast.unparse(node.args), ast.unparse(original.args)
    if given != expected:
        raise UserError(f"{'.'.join(names)} has the arguments ({given}); they must stay "
                        f"({expected})")
    known = {ast.unparse(line) for line in parse(pristine).body}
    imports = [line for line in parse(source).body
               if isinstance(line, (ast.Import, ast.ImportFrom)) and ast.unparse(line) not in known]
    kept = [line for line in imports if "*" not in ast.unparse(line)]
    return "\n".join(map(ast.unparse, [*kept, *(statements(node) or [ast.Pass()])]))


def replace(root, bodies):
    """Write the files of `root` anew with {dotted name: body}."""
    for dotted, body in bodies.items():
        path, names = file_of(root, dotted)
        source = (Path(root) / path).read_text(encoding="utf-8")
        (Path(root) / path).write_text(with_body(source, names, body), encoding="utf-8")
