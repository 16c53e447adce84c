"""A device with memory of its own whose copies beside what runs end as early or as late as they may."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from edgemoe.kernels.device.host import HostRuntime
from edgemoe.kernels.device.runtime import Argument, Block, Place
from edgemoe.kernels.operations import Bytes


class ReorderingDevice(HostRuntime):
    """Launches run only once somebody waits for it; a copy beside it is done before it, or not before it has
    been asked about some times. Now and then there is no room for one more.
    """

    unified = False

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._waiting: list[Callable[[], None]] = []
        """All that is to run, in order."""
        self.copied = 0
        """How many bytes have been copied beside."""

    def adopt(self, host: Bytes) -> None:  # type: ignore[override]
        return None

    def upload(self, to: Place, host: Bytes) -> None:
        place, copied = Place(Block(to.block.buffer), to.at), host.copy()
        self._waiting.append(lambda: HostRuntime.upload(self, place, copied))

    def download(self, of: Place, size: int) -> Bytes:
        self.finish()
        return super().download(of, size)

    def launch(self, kernel: str, arguments: Sequence[Argument], items: int) -> None:
        own = [Place(Block(one.block.buffer), one.at) if isinstance(one, Place) else one for one in arguments]
        self._waiting.append(lambda: HostRuntime.launch(self, kernel, own, items))

    def upload_beside(self, to: Place, host: Bytes) -> Any:
        if self._random.random() < 0.2:
            return None
        self.copied += host.size
        if self._random.random() < 0.5:
            HostRuntime.upload(self, to, host)
            return ()
        return to, host.copy()

    def arrived(self, copy: Any) -> bool:
        if copy and self._random.random() < 0.5:
            return False
        if copy:
            HostRuntime.upload(self, *copy)
        return True

    def finish(self) -> None:
        while self._waiting:
            self._waiting.pop(0)()
