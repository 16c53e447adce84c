"""Opens a model to serve it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.session.model import Model, load


def open_to_serve(
    path: str | os.PathLike[str] | None,
    options: EngineOptions,
    variables: Mapping[str, Any] | None = None,
    draft: str | os.PathLike[str] | None = None,
) -> Model:
    """The model of a path, whose chat template is to read these variables; `draft` is as in `load`.

    Raises as `load`, and UsageError or StoreError for a model that cannot be served.
    """
    model = load(path, options, draft)
    try:
        if model.spec.encoder is not None:
            raise UsageError(
                "This model holds no conversation: it reads a whole text and writes another one, which is not served.",
                "Use edgemoe run, or `Model.generate` from Python.",
            )
        model.tokenizer.require()
        if variables:
            model.template.check_variables(variables)
        _ = model.generation_defaults  # an unusable file is told now, and not to a client
    except BaseException:
        model.close()
        raise
    return model
