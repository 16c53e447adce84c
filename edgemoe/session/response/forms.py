"""The form of a model's answers: its checkpoint's own, or that of its family by the chat template."""

from __future__ import annotations

from pathlib import Path

from edgemoe.session.model_files import read_json_object
from edgemoe.session.response.builtin import builtin, builtin_name
from edgemoe.session.response.form import ResponseForm
from edgemoe.store.tokenizer_config import CONFIG_NAME


def form_of(folder: Path, template: str) -> ResponseForm | None:
    """The form of the answers of a model folder with this chat template; None where nothing is known of it.

    Raises StoreError for a form that is damaged.
    """
    own = read_json_object(folder / CONFIG_NAME, required=False).get("response_template")
    if own is not None:
        return ResponseForm.read(own)
    name = builtin_name(template)
    return None if name is None else builtin(name)
