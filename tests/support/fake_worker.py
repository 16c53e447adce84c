"""A worker for tests of the protocol: `python -m tests.support.fake_worker LOG PROMPT_S CONTINUATION_S`.

Its runs take no time but what it claims, and are noted in LOG with their begin and end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from edgemoe.bench.protocol import serve
from edgemoe.errors import UsageError

log, prompt_s, continuation_s = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
runs = 0


def note(**event: Any) -> None:
    with log.open("a") as file:
        file.write(json.dumps({"process": os.getpid(), **event}) + "\n")


def run(prompt: list[int], continuation: list[int], ledger: bool = False) -> dict[str, Any]:
    global runs
    runs += 1
    note(event="begin", prompt=prompt, continuation=continuation, ledger=ledger)
    time.sleep(0.002)
    note(event="end")
    return {"prompt_s": prompt_s * runs, "continuation_s": continuation_s * runs}


def refuse(what: str) -> dict[str, Any]:
    raise UsageError(f"not {what}.", "Ask for something else.")


def stumble() -> dict[str, Any]:
    raise ZeroDivisionError("by zero")


def chatter() -> dict[str, Any]:
    print("this is not an answer")
    os.write(1, b"nor this\n")
    return {"said": True}


def die(code: int) -> dict[str, Any]:
    print("first\nout of luck", file=sys.stderr, flush=True)
    os._exit(code)


def kill() -> dict[str, Any]:
    os.kill(os.getpid(), 9)
    return {}


if __name__ == "__main__":
    serve({"run": run, "refuse": refuse, "stumble": stumble, "chatter": chatter, "die": die, "kill": kill})
