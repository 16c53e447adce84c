"""The tokens of a text, cut into windows that a model reads one after another, so that every token is scored once.

A window begins with the tokens that the tokenizer puts before a text (BOS), and has at most `context` tokens. The first
one scores all tokens that it can; each further one scores the next `stride` tokens and begins as much earlier as its
context allows. So after the first window a token is scored with at least `context - stride` tokens before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemoe.errors import UsageError

DEFAULT_CONTEXT = 512
LEAST_CONTEXT = 8


@dataclass(frozen=True)
class Window:
    """The tokens `[first, end)` of a text after the head; the last `scored` of those that follow are scored."""

    first: int
    end: int
    scored: int

    @property
    def following(self) -> range:
        """Places in the text of the scored tokens, each of which follows a token that is read."""
        return range(self.end + 1 - self.scored, self.end + 1)


def check_windows(context: int, stride: int, head: int, max_positions: int) -> None:
    """Raise UsageError for sizes that do not go together, or that the model does not have."""
    if not LEAST_CONTEXT <= context <= max_positions:
        raise UsageError(
            f"`context_length`: expected {LEAST_CONTEXT} to {max_positions} tokens (this model's longest),"
            f" found {context}.",
            f"Leave it out for {min(DEFAULT_CONTEXT, max_positions)}.",
        )
    if not 1 <= stride <= context - max(head, 1):
        raise UsageError(
            f"`stride`: expected 1 to {context - max(head, 1)} in windows of {context} tokens, found {stride}.",
            "Leave it out for half of a window.",
        )


def cut_into_windows(tokens: int, head: int, context: int, stride: int) -> list[Window]:
    """Windows over a text of `tokens` tokens. Raises UsageError for a text with nothing to score."""
    scored = 0 if head else 1  # nothing stands before the first token
    if tokens < 2:
        raise UsageError(
            f"`text`: expected a text of 2 tokens or more, found {tokens}.", "Give a longer one: some pages."
        )
    windows: list[Window] = []
    room = context - head
    while scored < tokens:
        end = min(scored + stride, tokens) if windows else min(room + 1, tokens)
        windows.append(Window(max(0, end - 1 - room), end - 1, end - scored))
        scored = end
    return windows
