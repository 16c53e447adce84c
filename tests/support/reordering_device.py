"""A device with memory of its own whose copies beside what runs end as early or as late as they may."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from edgemoe.kernels.device.host import HostRuntime
from edgemoe.kernels.device.runtime import Argument, Block, Copies, Mark, Place
from edgemoe.kernels.operations import Bytes


class ReorderingDevice(HostRuntime):
    """What is launched runs only once something waits for it; a copy beside it comes before all that it may overtake,
    or not before something waits for the copy.
    """

    unified = False

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._waiting: list[Callable[[], None]] = []
        """All that is to run, in order."""
        self._ended = 0
        self._late: list[Copies] = []
        self.copied = 0
        """How many copies beside have been asked for."""

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

    def mark(self) -> Mark:
        return self._ended + len(self._waiting)

    def copy_beside(self, copies: Copies, after: Mark) -> Mark:
        self.copied += 1
        if after is not None:
            self._run_until(after)
        self._late.append(copies)
        if self._random.random() < 0.5:
            self._copy()
        return self._copy

    def wait_for(self, mark: Mark) -> None:
        if callable(mark):
            self._waiting.append(mark)

    def finish(self) -> None:
        self._run_until(self._ended + len(self._waiting))

    def _copy(self) -> None:
        """Do the copies that are late."""
        late, self._late = self._late, []
        for copies in late:
            for to, host in copies:
                HostRuntime.upload(self, to, host)

    def _run_until(self, end: int) -> None:
        while self._ended < end:
            self._waiting.pop(0)()
            self._ended += 1
