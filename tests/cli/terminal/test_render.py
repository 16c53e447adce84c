import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.markdown import Markdown
from rich.style import Style

from edgemoe.cli.terminal.heatmap import fold
from edgemoe.cli.terminal.render import MarkdownStream, Terminal, draw_heat_map, finished_length
from tests.support.every_case import every_case
from tests.support.examples import examples

DOCUMENT = """# Title

A paragraph that goes
over two lines.

- one
- two

  more of two

- three

Then text.

```python
a = 1

b = 2
```

1. first

2. second

| a | b |
|---|---|
| 1 | 2 |
"""


def shown(pieces: list[str]) -> str:
    console = Console(file=io.StringIO(), width=60, force_terminal=False)
    view = MarkdownStream(console)
    for piece in pieces:
        view.feed(piece)
    view.finish()
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
@settings(deadline=None, max_examples=examples(20))
def test_streamed_markdown_shows_what_the_whole_shows(cuts: list[int]) -> None:
    pieces, rest = [], DOCUMENT
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    assert shown([*pieces, rest]) == shown(list(DOCUMENT))
    whole = Console(file=io.StringIO(), width=60)
    whole.print(Markdown(DOCUMENT))
    assert shown([DOCUMENT]).split() == whole.file.getvalue().split()  # type: ignore[attr-defined]


@every_case(
    ("text", "finished"),
    [
        ("a", ""),
        ("a\n\n", "a\n\n"),
        ("a\n\nb", "a\n\n"),
        ("```\na\n\nb\n", ""),
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```\n\n"),
        ("- a\n\n", ""),
        ("- a\n\n- b\n\n", ""),
        ("- a\n\n- b\n\ntext\n", "- a\n\n- b\n\n"),
        ("- a\nlazy\n\ntext\n", "- a\nlazy\n\n"),
        ("- a\n\n```\nb\n", "- a\n\n"),
        ("- a\n\n  ```\n  b\n\n", ""),
        ("one\n\ntwo\n\nthree", "one\n\n"),
        ("\n\none\n\n", "\n\none\n\n"),
    ],
)
def test_blocks_are_finished_when_nothing_can_change_them(text: str, finished: str) -> None:
    assert text[: finished_length(text)] == finished


def test_a_map_folds_what_does_not_fit() -> None:
    uses = np.zeros((10, 64), np.int64)
    uses[4:] = 1
    uses[4, 3] = 63
    resident = np.zeros((10, 64), np.bool_)
    resident[:, :32] = True
    whole = fold(uses, resident, 100, 100)
    assert whole is not None
    assert (whole.heat.shape, whole.layers, whole.experts) == ((6, 64), 6, 64)  # dense layers are left out
    assert whole.heat[0].argmax() == 3
    assert whole.heat.max(axis=1).tolist() == [1.0] * 6
    folded = fold(uses, resident, 4, 10)
    assert folded is not None
    assert folded.heat.shape == folded.resident.shape == (4, 10)
    assert folded.resident[0, 0] == 1
    assert folded.resident[0, -1] == 0
    assert fold(np.zeros((3, 4), np.int64), np.zeros((3, 4), np.bool_), 5, 5) is None


def test_a_map_is_drawn_with_and_without_colour() -> None:
    heat_map = fold(np.array([[4, 0], [1, 2], [1, 1]]), np.array([[True, False]] * 3), 10, 10)
    assert heat_map is not None
    plain = draw_heat_map(heat_map, coloured=False).plain.splitlines()
    assert plain[:3] == ["@|  ", "=|@ ", "@|@ "]
    coloured = draw_heat_map(heat_map, coloured=True)
    assert coloured.plain.splitlines()[:2] == ["▀▀▀▀", "▀▀▀▀"]
    styles = [span.style for span in coloured.spans if isinstance(span.style, Style)]
    colours = [style.color.name for style in styles if style.color]
    assert colours[0] == "#ffa028"  # used most, in memory
    assert colours[1].endswith("1f")  # unused, on disk: dark blue


def test_what_a_model_says_cannot_steer_the_terminal() -> None:
    terminal = Terminal()
    terminal.console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    hostile = "a\x1b]52;c;ZXZpbA==\x07b\x9b2Jc\x08d"
    terminal.stream([hostile])
    terminal.text(hostile)
    terminal.note(hostile)
    terminal.table([(hostile, hostile)])
    assert isinstance(terminal.console.file, io.StringIO)
    written = terminal.console.file.getvalue()
    assert "]52" in written
    assert not {"\x1b]", "\x07", "\x9b", "\x08"} & {written[i : i + n] for i in range(len(written)) for n in (1, 2)}
