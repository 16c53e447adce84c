"""Converts errors of the hub's library, the connection and the disk to SourceErrors that name a remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from edgemoe.errors import SourceError


class HubUnreachableError(SourceError):
    """The hub is unreachable now: offline mode, no connection, or a failure of the hub."""


AGAIN = "Run the same command again to resume."

FAILURES: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)
"""Errors a request can raise. The library's derive from those of its HTTP client, which differs by version."""

_NOT_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG})
"""Errors of this machine's disk, after which a retry does not help."""


@contextmanager
def explained(what: str, folder: Path | None = None) -> Iterator[None]:
    """Turns errors of the library and the disk into a SourceError.

    `what` is the repository, or the file in it; `folder` is the folder it is written to.
    """
    try:
        yield
    except SafetensorsParsingError as error:
        raise SourceError(f"{what}: a shard's header is not safetensors: {error}.") from error
    except HFValidationError as error:
        raise SourceError(f"{what}: not a hub id: {error}.", "Give owner/name[@revision].") from error
    except FAILURES as error:
        raise _explain(error, what, folder) from error


def http_status(error: Exception) -> int | None:
    """The HTTP status behind an error; None if there was no response."""
    return getattr(getattr(error, "response", None), "status_code", None)


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    status = http_status(error)
    if status is not None:
        return status >= 500 or status == 429
    return not isinstance(error, OSError) or error.errno not in _NOT_PASSING


def _explain(error: Exception, what: str, folder: Path | None) -> SourceError:
    if isinstance(error, GatedRepoError):
        return SourceError(
            f"{what}: access requires accepting the terms of the model.",
            "Accept them on its page, set HF_TOKEN to a token of your account, then run the same command again.",
        )
    if isinstance(error, RevisionNotFoundError):
        return SourceError(f"{what}: the hub has no such revision of it.", "Check the part after the @.")
    if isinstance(error, RepositoryNotFoundError) or http_status(error) == 401:
        return SourceError(
            f"{what}: there is no such folder here, and the hub has no such model, or it is private.",
            "Check the spelling; for a private model set HF_TOKEN to a token that may read it.",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnreachableError(
            f"{what}: HF_HUB_OFFLINE is set, so the hub is not contacted.",
            "Unset it, or give the folder of a checkpoint that is on this machine.",
        )
    if isinstance(error, HfHubHTTPError):
        status = http_status(error)
        if status == 403:
            return SourceError(
                f"{what}: the hub refused access (HTTP {status}).", "Set HF_TOKEN to a token that may read it."
            )
        kind = HubUnreachableError if may_pass(error) else SourceError
        return kind(f"{what}: the hub answered HTTP {status}.", f"Try later. {AGAIN}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SourceError(
            f"{what}: the disk under {folder} is full.", "Free some space there, then run the same command again."
        )
    if folder is not None and isinstance(error, OSError) and error.errno in _NOT_PASSING:
        return SourceError(
            f"{what}: {folder} cannot be written ({error.strerror}).",
            "Make the folder writable, then run the same command again.",
        )
    reason = str(error) or type(error).__name__
    return HubUnreachableError(
        f"{what}: the connection to the hub failed: {reason:.300}.", f"Check the network. {AGAIN}"
    )
