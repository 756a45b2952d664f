"""CPU time (user + system, median) of the commands that list things. The aim is 0.4 s at most for each."""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path

COMMANDS = (("--help",), ("tasks",), ("plugins",), ("saes",))
AIM = 0.4


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    saebench = str(Path(sys.executable).with_name("saebench"))
    bare = statistics.median(cpu_seconds([sys.executable, "-c", "pass"]) for _ in range(repeats))
    print(f"| command | CPU seconds, median of {repeats} | at most {AIM} |\n|---|---|---|")
    print(f"| python -c pass | {bare:.2f} | |")
    for arguments in COMMANDS:
        cpu_seconds([saebench, *arguments])
        median = statistics.median(cpu_seconds([saebench, *arguments]) for _ in range(repeats))
        print(f"| saebench {' '.join(arguments)} | {median:.2f} | {'yes' if median <= AIM else 'no'} |")


if __name__ == "__main__":
    main()
