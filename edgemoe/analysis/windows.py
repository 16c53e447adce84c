"""Windows over several texts, so that each is read in equal shares from the beginning on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.calibration.settings import CONTEXT, LEAST_TOKENS, Windows
from edgemoe.errors import UsageError
from edgemoe.model.build import build_graph
from edgemoe.model.description import build_options, store_spec
from edgemoe.store.reader import Store


def cut_texts(
    store: Store, texts: Sequence[tuple[str, npt.NDArray[np.int32]]], head: Sequence[int]
) -> tuple[Windows, npt.NDArray[np.int32]]:
    """Windows over several texts, given by their names and ids, in turn; and the number of each window's text.

    `head` are the tokens that stand before every text. All windows are as long as the shortest text allows.
    Raises UsageError for a text that is too short.
    """
    for name, ids in texts:
        if len(ids) < LEAST_TOKENS:
            raise UsageError(
                f"`text`: expected a text of at least {LEAST_TOKENS} tokens, found {len(ids)} in {name}.",
                "Give some pages of text of the kind that the model is for.",
            )
    longest = min(build_graph(store_spec(store), build_options(store)).longest_contexts)
    room = min(CONTEXT, longest, *(len(ids) + len(head) for _, ids in texts)) - len(head)
    rows = [ids[: len(ids) // room * room].reshape(-1, room) for _, ids in texts]
    order = sorted((number / len(own), domain, number) for domain, own in enumerate(rows) for number in range(len(own)))
    body = np.stack([rows[domain][number] for _, domain, number in order])
    before = np.broadcast_to(np.array(head, np.int32), (len(body), len(head)))
    windows = Windows(np.ascontiguousarray(np.concatenate([before, body], axis=1), np.int32), len(head))
    return windows, np.array([domain for _, domain, _ in order], np.int32)
