"""Opens a model to serve it."""

from __future__ import annotations

import os

from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.session.model import Model, load


def open_to_serve(path: str | os.PathLike[str] | None, options: EngineOptions) -> Model:
    """The model of a path. Raises as `load`, and UsageError or StoreError for one that cannot be served."""
    model = load(path, options)
    try:
        if model.spec.encoder is not None:
            raise UsageError(
                "This model holds no conversation: it reads a whole text and writes another one, which is not served.",
                "Use edgemoe run, or `Model.generate` from Python.",
            )
        model.tokenizer.require()
        _ = model.generation_defaults  # an unusable file is told now, and not to a client
    except BaseException:
        model.close()
        raise
    return model
