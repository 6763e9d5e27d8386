"""The parts of a page that come from the code, between two comments, and the prose around them.

    <!-- structs: mingled/core/messages.py Join Welcome -->
    ... made from the source, and made again by scripts/generate_docs.py ...
    <!-- end -->

Read from the source text, not by import: what the comments beside the fields say is not there else.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_SECTION = re.compile(r"(<!-- (\w+): ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with each such part made anew. Raises `KeyError` for what the code does not have."""

    def made(match: re.Match[str]) -> str:
        head, kind, words, end = match.groups()
        path, *names = words.split()
        return f"{head}\n{_KINDS[kind](path, names)}\n\n{end}"

    return _SECTION.sub(made, page)


def code(text: str) -> str:
    """Code in a cell of a table. Renderers do not agree about what `\\|` is in there."""
    if "|" not in text:
        return f"`{text}`" if text else ""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>"


# ---------------------------------------------------------------- structs


def _structs(path: str, names: list[str]) -> str:
    """A heading, the docstring and the fields of each."""
    source = _Source(path)
    return "\n\n".join(_struct(source, source.classes[name]) for name in names)


def _struct(source: _Source, node: ast.ClassDef) -> str:
    tag = next((_text(k.value) for k in node.keywords if k.arg == "tag"), "")
    blocks = [f"#### {node.name}" + (f", `{tag}`" if tag else "")]
    blocks.append(_markdown(ast.get_docstring(node) or ""))
    rows = [
        f"| {code(name)} | {code(kind)} | {code(default)} | {meaning} |"
        for name, kind, default, meaning in source.fields(node)
    ]
    if rows:
        blocks.append("\n".join(["| field | type | default | |", "|---|---|---|---|", *rows]))
    return "\n\n".join(block for block in blocks if block)


def _settings(path: str, names: list[str]) -> str:
    """Names, values and reasons of a struct whose fields are documented below them, or of a
    module's constants."""
    source = _Source(path)
    body = source.classes[names[0]].body if names[0] in source.classes else source.tree.body
    wanted = set(names)
    rows = []
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        name, value = _assigned(node)
        if value is None or (body is source.tree.body and name not in wanted):
            continue
        reason = ast.unparse(after.value) if _is_text(after) and isinstance(after, ast.Expr) else ""
        reason = ast.literal_eval(reason) if reason else ""
        rows.append(f"| {code(name)} | {code(source.text(value))} | {_cell(reason)} |")
    return "\n".join(["| name | value | |", "|---|---|---|", *rows])


def _assigned(node: ast.stmt) -> tuple[str, ast.expr | None]:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id, node.value
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id, node.value
    return "", None


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def members(path: str, name: str) -> list[tuple[str, str]]:
    """The values of an enumeration of texts, each with the comment beside it."""
    source = _Source(path)
    found = []
    for node in source.classes[name].body:
        value = _assigned(node)[1]
        if value is not None:
            comment = source.lines(node.lineno, node.lineno).partition("#: ")[2]
            found.append((_text(value), _cell(comment)))
    return found


# ---------------------------------------------------------------- code and rooms


def _code(path: str, names: list[str]) -> str:
    """Functions and methods (`Class.method`) as they are."""
    source = _Source(path)
    blocks = []
    for name in names:
        node = source.named(name)
        blocks.append(source.lines(node.lineno, node.end_lineno or node.lineno))
    return "```python\n" + "\n\n\n".join(blocks) + "\n```"


def _rooms(folder: str, names: list[str]) -> str:
    """Each module of a folder with the first sentence of its docstring; some, if they are named."""
    rows = []
    for path in sorted((ROOT / folder).glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if text and (not names or path.stem in names):
            rows.append(f"| `{path.stem}` | {_cell(_first_sentence(text))} |")
    return "\n".join(["| | |", "|---|---|", *rows])


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.?])\s+(?=[A-Z`])", paragraph)[0]


# ---------------------------------------------------------------- source text


class _Source:
    """One module, as text and as a tree."""

    def __init__(self, path: str) -> None:
        self._lines = (ROOT / path).read_text().splitlines()
        self.tree = ast.parse("\n".join(self._lines))
        self.classes = {n.name: n for n in self.tree.body if isinstance(n, ast.ClassDef)}

    def named(self, name: str) -> ast.stmt:
        """A function, a class, or `Class.method`."""
        body, wanted = self.tree.body, name
        if "." in name:
            owner, wanted = name.split(".")
            body = self.classes[owner].body
        for node in body:
            if getattr(node, "name", None) == wanted:
                return node
        raise KeyError(name)

    def lines(self, first: int, last: int) -> str:
        """Both included, with the indentation of the first taken away from all."""
        lines = self._lines[first - 1 : last]
        indent = len(lines[0]) - len(lines[0].lstrip())
        return "\n".join(line[indent:] for line in lines)

    def text(self, node: ast.expr) -> str:
        return " ".join((ast.get_source_segment("\n".join(self._lines), node) or "").split())

    def _above(self, line: int) -> str:
        """The `#:` lines just above this one, as one text."""
        first = line - 1
        while first and self._lines[first - 1].lstrip().startswith("#:"):
            first -= 1
        lines = self._lines[first : line - 1]
        return " ".join(text.strip().removeprefix("#:").strip() for text in lines)

    def fields(self, node: ast.ClassDef) -> list[tuple[str, str, str, str]]:
        """Name, type, default and meaning, the last as the `#:` beside or above it says."""
        found = []
        for item in node.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            comment = self._lines[(item.end_lineno or item.lineno) - 1].partition("#:")[2]
            if not comment:
                comment = self._above(item.lineno)
            default = self.text(item.value) if item.value is not None else ""
            kind = self.text(item.annotation)
            found.append((item.target.id, kind, default, _cell(comment.strip())))
        return found


def _text(node: ast.expr) -> str:
    return str(ast.literal_eval(node))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _markdown(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


_KINDS: dict[str, Callable[[str, list[str]], str]] = {
    "structs": _structs,
    "settings": _settings,
    "code": _code,
    "rooms": _rooms,
}
