"""The thread that owns the model: it opens it, runs the steps of all jobs, and closes it at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal

from edgemoe.server.jobs import Job, QueueFullError, StoppingError
from edgemoe.server.notices import Notices
from edgemoe.server.scheduler import Scheduler
from edgemoe.session.model import Model

State = Literal["loading", "ready", "stopping", "failed"]


class EngineThread:
    """Takes jobs from any thread. No other thread may use the model's engine; its tokenizer and files are free."""

    def __init__(
        self, load: Callable[[], Model], most_waiting: int, changed: Callable[[], None] = lambda: None
    ) -> None:
        """`load` opens the model; `changed` is called on the thread when the model is ready, or could not be opened."""
        self.state: State = "loading"
        self.error: BaseException | None = None
        """Why the model could not be opened, or why the thread has ended."""
        self.model: Model | None = None
        self.scheduler: Scheduler | None = None
        self.notices = Notices()
        """The way on which event loops are told of what jobs report."""
        self._load = load
        self._most_waiting = most_waiting
        self._changed = changed
        self._arrived: list[Job] = []
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to open the model."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of jobs that have no sequence yet."""
        return len(self._arrived) + (0 if self.scheduler is None else len(self.scheduler.waiting))

    @property
    def running(self) -> int:
        return 0 if self.scheduler is None else len(self.scheduler.running)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait for their turn: all of them, or none. Raises QueueFullError and StoppingError."""
        with self._wake:
            if self.state != "ready" or self.scheduler is None:
                raise StoppingError
            places = self.scheduler.most_running + self._most_waiting
            if self.running + self.waiting + len(jobs) > places:
                self.scheduler.totals.refused += 1
                raise QueueFullError(self.waiting)
            self._arrived.extend(jobs)
            self._wake.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End jobs that nobody wants any more: at the next layer of a prompt, or the next token."""
        for job in jobs:
            job.cancelled = True

    def stop(self) -> None:
        """End all jobs with an error, and close the model; `join` waits for that."""
        with self._wake:
            if self.state != "failed":
                self.state = "stopping"
            if self.scheduler is not None:
                self.scheduler.stopping = True
            self._wake.notify()

    def join(self, seconds: float | None = None) -> None:
        """Wait for the thread's end."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            with self._load() as model:
                scheduler = Scheduler(model, self.notices.send)
                with self._wake:
                    self.model, self.scheduler = model, scheduler
                    if self.state == "loading":
                        self.state = "ready"
                self._changed()
                while self._take_arrived(scheduler):
                    if scheduler.busy:
                        scheduler.step()
                    else:
                        scheduler.save_prefix()
                scheduler.stop()
                self.notices.send()
        except BaseException as error:
            self.error = error
            self.state = "failed"
            if self.scheduler is not None:
                self.scheduler.stop()
                self.notices.send()
            self._changed()

    def _take_arrived(self, scheduler: Scheduler) -> bool:
        """Give new jobs to the scheduler, once there is anything to do; False where the thread is to end."""
        if not scheduler.busy:
            self.notices.send()
        with self._wake:
            self._wake.wait_for(lambda: self._arrived or scheduler.has_work or self.state != "ready")
            scheduler.add(self._arrived)
            self._arrived.clear()
            return self.state == "ready"
