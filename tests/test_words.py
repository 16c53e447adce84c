"""Rules for words that a linter does not know."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from edgemoe.cli.parameters import with_flags
from tests.support.every_case import every_case

ROOT = Path(__file__).parents[1] / "edgemoe"
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
MAKES_COMMAND_LINES = {"bench/startup.py", "bench/clients.py", "bench/control_group.py"}
"""They start `edgemoe run` and servers, and name the command that starts edgemoe with rights for a control group."""


HEADLESS = r"\s*(Of|That|Those|What|Who)\b"


def parsed(path: Path, pattern: str) -> ast.Module:
    """The module, or an empty one where a pattern is nowhere in its text: to parse them all takes seconds."""
    text = path.read_text(encoding="utf-8")
    return ast.parse(text if re.search(pattern, text) else "")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every string with a flag's form in a module, with its line, docstrings too."""
    for node in ast.walk(parsed(path, FLAG.pattern)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_only_the_command_line_knows_flags() -> None:
    """Errors below it name parameters, since a Python program and a server have no flags."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {flag}"
        for path in sorted(ROOT.rglob("*.py"))
        if "cli" not in path.relative_to(ROOT).parts and str(path.relative_to(ROOT)) not in MAKES_COMMAND_LINES
        for line, text in texts(path)
        for flag in FLAG.findall(text)
    ]
    assert found == []


def documented(tree: ast.Module) -> Iterator[ast.Constant]:
    """Every docstring, those of attributes too: a string that stands alone as a statement."""
    for node in ast.walk(tree):
        for statement in getattr(node, "body", ()) if not isinstance(node, (ast.Lambda, ast.IfExp)) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                yield statement.value


def test_docstrings_begin_with_their_subject_or_verb() -> None:
    found = [
        f"{path.relative_to(ROOT.parent)}:{text.lineno}: {str(text.value)[:60]}"
        for folder in (ROOT, Path(__file__).parent)
        for path in sorted(folder.rglob("*.py"))
        for text in documented(parsed(path, "[\"']" + HEADLESS))
        if isinstance(text.value, str) and re.match(HEADLESS, text.value)
    ]
    assert found == []


@every_case(
    ("text", "told"),
    [
        ("Give a smaller `ram`.", "Give a smaller --ram."),
        ("open it with `kv=q8`.", "open it with --kv q8."),
        ("`peer_decode_tokens`: expected 1", "--peer-decode: expected 1"),
        ("more (`ram=floor` takes what it needs)", "more (--ram floor takes what it needs)"),
        ("a template with `{{ x }}` and `two words`", "a template with `{{ x }}` and `two words`"),
    ],
)
def test_the_command_line_spells_parameters_as_flags(text: str, told: str) -> None:
    assert with_flags(text) == told
