"""Shows a source as conversion reads it: tensors that are one matrix as one, under the names that families know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgemoe.conversion.safetensors_rows import BytesSource
from edgemoe.conversion.source import Source
from edgemoe.errors import SourceError

if TYPE_CHECKING:
    from edgemoe.conversion.gguf.source import GgufSource


def shown(source: BytesSource | GgufSource) -> Source:
    """A source without the tensors behind quantised ones and with tails joined; a GGUF model is one already.

    Raises SourceError.
    """
    from edgemoe.conversion.gguf.source import GgufSource
    from edgemoe.conversion.quantised.source import with_blocks
    from edgemoe.conversion.tailed import with_tails

    if isinstance(source, GgufSource):
        return source
    try:
        joined = with_blocks(source)
    except BaseException:
        source.close()
        raise
    try:
        return with_tails(joined)
    except SourceError:  # a config of no family is refused later, with the source named
        return joined
