"""Runs the units of a plan in several processes (`--jobs`): one hands them out, the others each hold a session.

Units of one task go to the same process, since they share more than activations: labelled sets, what the task gives on
the oracle, what a part of it reads from its whole. A process with nothing left takes over what waits longest elsewhere.
Units that ask a judge all go to one process, so that one purse is spent.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.events import UnitStarted
from saebench_meta.plan import Plan, Unit, make_plan
from saebench_meta.record import Record
from saebench_meta.runner import Outcome, UnitResult, run_unit, session_for
from saebench_meta.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from saebench_meta.plugins import Registry

Ending = tuple[Outcome, Record | None, Path | None, str | None, float]
"""A `UnitResult` without its unit, as it comes back from a process."""

JUDGED = "the judge's"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What torch, numpy and scikit-learn take their number of threads from; the first is what a user sets for all."""
PURSE = (
    "the process that held the purse of --max-cost is gone, and what it had spent is not known to others. "
    "Run the same command again; answers that are there cost nothing."
)
OTHERWISE = (
    "A plugin may be known to this process only, or a file has changed meanwhile. "
    "Install plugins as packages, or leave out --jobs."
)


class Queue:
    """The units still to do, by what they share."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.groups: dict[str, deque[Unit]] = {}
        self._taken: set[str] = set()
        for unit in sorted(units, key=lambda u: u.judge is None):  # the judge's first: nobody can help with them
            self.groups.setdefault(self._group(unit), deque()).append(unit)

    @staticmethod
    def _group(unit: Unit) -> str:
        return JUDGED if unit.judge is not None else unit.task.part_of or unit.task.name

    def next(self, group: str | None) -> tuple[str, Unit] | None:
        """The next unit for a process that is at work on a group: from that, a new one, or another's; None if none."""
        if group is not None and self.groups[group]:
            return group, self.groups[group].popleft()
        for name, units in self.groups.items():
            if units and name not in self._taken:
                self._taken.add(name)
                return name, units.popleft()
        return self._anothers()

    def _anothers(self) -> tuple[str, Unit] | None:
        """The last unit of the longest group that is not on a family: that one would have to do all of it again."""
        free = {n: [u for u in us if u.subject.kind != "family"] for n, us in self.groups.items() if n != JUDGED}
        name = max(free, key=lambda n: len(free[n]), default=None)
        if name is None or not free[name]:
            return None
        unit = free[name][-1]
        self.groups[name].remove(unit)
        return name, unit

    def left(self, group: str) -> list[Unit]:
        """Take all that waits in a group."""
        units = list(self.groups[group])
        self.groups[group].clear()
        return units

    def empty(self) -> bool:
        return not any(self.groups.values())

    def clear(self) -> None:
        for units in self.groups.values():
            units.clear()


@dataclass(eq=False)
class _Worker:
    """A process, and what it is at."""

    number: int
    process: SpawnProcess
    pipe: Connection
    group: str | None = None
    unit: Unit | None = None


def share(
    registry: Registry,
    plan: Plan,
    units: Sequence[Unit],
    settings: Settings,
    finished: Callable[[UnitResult, int], None],
) -> None:
    """Run units in `settings.jobs` processes, at most one for each unit.

    Args:
        units: those of the plan that are to be run.
        finished: told of every unit as it ends, with the number of its process.

    Raises:
        SaebenchError: what a process raises outside a task; the others are stopped, and what is finished is kept.
    """
    index = {u.place.id: i for i, u in enumerate(plan.units, 1)}
    queue, spawn = Queue(units), multiprocessing.get_context("spawn")
    workers: list[_Worker] = []

    def start(number: int) -> _Worker:
        here, there = spawn.Pipe()
        process = spawn.Process(target=_work, args=(settings, number, there), name=f"saebench-{number}", daemon=True)
        process.start()
        there.close()
        return _Worker(number, process, here)

    def give(worker: _Worker) -> None:
        found = queue.next(worker.group)
        worker.unit = None
        if found is None:
            return
        worker.group, worker.unit = found
        with contextlib.suppress(OSError):  # it has died, as reading from it will tell
            worker.pipe.send(worker.unit.place.id)
        started = UnitStarted(worker.unit.task.name, worker.unit.subject.name, index[worker.unit.place.id], len(index))
        registry.emit(replace(started, worker=worker.number))

    def ended(worker: _Worker, ending: Ending) -> None:
        assert worker.unit is not None
        finished(UnitResult(worker.unit, *ending), worker.number)
        if ending[0] == "failed" and settings.fail_fast:
            queue.clear()
        give(worker)

    def died(worker: _Worker) -> None:
        """What it was at has failed; another process takes its place if there is more to do."""
        workers.remove(worker)
        assert worker.unit is not None
        finished(UnitResult(worker.unit, "failed", reason=_how_it_died(worker)), worker.number)
        if worker.group == JUDGED and settings.max_cost is not None:
            for unit in queue.left(JUDGED):
                finished(UnitResult(unit, "failed", reason=PURSE), worker.number)
        if settings.fail_fast:
            queue.clear()
        if not queue.empty():
            workers.append(start(worker.number))
            workers[-1].group = worker.group
            give(workers[-1])

    try:
        for number in range(1, min(settings.jobs, len(units)) + 1):
            workers.append(start(number))
            give(workers[-1])
        while at_work := {w.pipe: w for w in workers if w.unit is not None}:
            for pipe in connection.wait(list(at_work)):
                worker = at_work[pipe]  # type: ignore[index]  # connections went in, so they come out
                try:
                    said, what = worker.pipe.recv()
                except (EOFError, OSError):
                    died(worker)
                    continue
                if said == "event":
                    registry.emit(replace(what, worker=worker.number))
                elif said == "ended":
                    ended(worker, what)
                else:
                    raise what
    finally:
        _stop(workers)


def _how_it_died(worker: _Worker) -> str:
    worker.process.join()
    code = worker.process.exitcode or 0
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    why = "; memory may have run out" if code == -9 else "; what it said is above" if code >= 0 else ""
    return f"the process that ran it ended with {how}{why}. Run the same command again with fewer --jobs."


def _stop(workers: Sequence[_Worker]) -> None:
    """End the processes: at once what is at work, the others after they let go of what they hold."""
    for worker in workers:
        if worker.unit is not None:
            worker.process.terminate()
        else:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
    for worker in workers:
        worker.process.join(10)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


# -- in the other processes


def _work(settings: Settings, number: int, pipe: Connection) -> None:
    """Run the units whose ids come through the pipe, until None comes or the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    threads = threads_of(settings, os.environ.get(THREADS[0]), os.cpu_count() or 1)
    os.environ |= dict.fromkeys(THREADS, str(threads))  # before anything that reads them is imported
    guard = threading.Lock()

    def tell(said: str, what: Any) -> None:
        try:
            with guard:
                pipe.send((said, what))
        except ConnectionError:  # the first process is gone: that is no failure of the task at work
            os._exit(1)

    try:
        _serve(settings, number, pipe, tell)
    except EOFError:  # the same, while waiting
        pass
    except Exception as e:
        tell("error", e if isinstance(e, SaebenchError) else SaebenchError(f"{type(e).__name__}: {e}"))


def threads_of(settings: Settings, given: str | None, cores: int) -> int:
    """The CPU threads of a process: as many as were asked for, else an equal share."""
    whole = int(given) if given and given.isdigit() else cores
    return settings.threads or max(1, whole // settings.jobs)


def device_of(settings: Settings, number: int, gpus: int) -> str:
    """The device of a process: where a GPU is to be found, and there are several, they are taken in turn."""
    if gpus < 2 or settings.device not in ("auto", "cuda") or settings.device_map is not None:
        return settings.device
    return f"cuda:{(number - 1) % gpus}"


def _serve(settings: Settings, number: int, pipe: Connection, tell: Callable[[str, Any], None]) -> None:
    from saebench_meta.plugins import registry

    found = registry()
    try:
        units = {u.place.id: u for u in make_plan(found, settings).units}
    except SaebenchError as e:
        raise SaebenchError(f"another process cannot plan this run: {e} {OTHERWISE}") from e
    found.tell_only(lambda event: tell("event", event))
    import torch

    torch.set_num_threads(int(os.environ[THREADS[0]]))
    device = device_of(settings, number, torch.cuda.device_count())
    session = session_for(found, replace(settings, device=device))
    try:
        while (key := pipe.recv()) is not None:
            if key not in units:
                raise SaebenchError(f"another process plans this run otherwise. {OTHERWISE}")
            unit = units[key]
            if unit.inputs is not None:
                session.keep_only([unit.inputs])
            result = run_unit(session, unit)
            tell("ended", (result.status, result.record, result.folder, result.reason, result.seconds))
    finally:
        session.close()
