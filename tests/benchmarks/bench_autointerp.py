"""What `autointerp` costs with the judge `lexical` on atlas: CPU seconds on one thread.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_autointerp.py [--sae atlas:batchtopk-1024] [--latents 500]

`cold` runs the model and trains the meta-SAE; `warm` finds both in the cache. The SAE under test is asked about with
its meta-latents, the random control and the oracle without.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from saebench_meta.judge_desk import seated
from saebench_meta.judging import Answer, Judge, Request
from saebench_meta.plan import make_plan
from saebench_meta.plugins import registry
from saebench_meta.session import Session
from saebench_meta.settings import Settings
from saebench_meta.task_context import TaskContext


class Timed:
    """A judge whose requests and CPU seconds are counted."""

    def __init__(self, judge: Judge) -> None:
        self._judge, self.seconds, self._requests = judge, 0.0, Counter[str]()

    def ask(self, requests: Sequence[Request]) -> Sequence[Answer]:
        start = time.process_time()
        answers = self._judge.ask(requests)
        self.seconds += time.process_time() - start
        self._requests.update(r.purpose for r in requests)
        return answers

    def said(self) -> str:
        return ", ".join(f"{n} {purpose}" for purpose, n in self._requests.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sae", default="atlas:batchtopk-1024")
    parser.add_argument("--latents", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for state in ("cold", "warm"):
            print(f"{args.sae}, {args.latents} latents, {state}")
            show(args.sae, args.latents, Path(folder))


def show(ref: str, latents: int, folder: Path) -> None:
    """Run the task on the SAE and on its controls; print what each took, and the judge's part."""
    found = registry()
    settings = Settings(saes=(ref,), tasks=("autointerp",), limit=latents, cache_dir=folder, out=folder / "out")
    unit = make_plan(found, settings).units[0]
    session = Session(found, settings)
    ctx = TaskContext(session, unit)
    site, member = ctx.site, unit.subject.members[0]
    saes = {"subject": session.sae(member, site), "random": session.control("random", member, site)}
    if unit.oracle is not None:
        saes["oracle"] = session.sae(unit.oracle, site)
    assert unit.judge is not None
    seat = seated(session, unit.judge)
    asked = seat._judge
    for name, sae in saes.items():
        seat._judge = judge = Timed(asked)
        start = time.process_time()
        with nullcontext() if name == "subject" else ctx.running(name):
            unit.task(sae, ctx, **unit.parameters)
        print(
            f"  {name}: {time.process_time() - start:.1f} CPU-s, of them the judge {judge.seconds:.1f}: {judge.said()}"
        )


if __name__ == "__main__":
    main()
