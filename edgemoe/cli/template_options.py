"""Options about the text that a model reads: variables of its chat template, and markers in a person's text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from edgemoe.cli.options import utf8_argument
from edgemoe.errors import UsageError

PYTHON_WORDS = {"True": True, "False": False, "None": None}
"""Words that become Python values: as strings all three would count as true in a template."""

TemplateVarOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template-var",
        metavar="NAME=VALUE",
        help="Set a variable of the chat template, such as enable_thinking=false or reasoning_effort=high"
        " (JSON or text). Can be repeated.",
    ),
]
LiteralOption = Annotated[
    bool,
    typer.Option(
        "--literal-prompt",
        help="Encode special tokens that your text spells, such as <|im_end|>, as plain text and not as tokens.",
    ),
]


def template_variables(assignments: Sequence[str] | None) -> dict[str, Any]:
    """Parse the variables of `--template-var` options. Raises UsageError for text that is not an assignment."""
    variables: dict[str, Any] = {}
    for assignment in assignments or ():
        name, equals, text = utf8_argument(assignment, "--template-var").partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(
                f"--template-var: expected NAME=VALUE, found {assignment!r:.80}.", "For example: enable_thinking=false."
            )
        if name in variables:
            raise UsageError(f"--template-var {name}: given twice.", "Give it once.")
        try:
            variables[name] = PYTHON_WORDS[text] if text in PYTHON_WORDS else json.loads(text)
        except (ValueError, RecursionError):
            variables[name] = text
    return variables
