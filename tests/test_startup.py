"""Listing commands are instant: they import none of the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "numpy",
    "transformer_lens",
    "transformers",
    "datasets",
    "pandas",
    "scipy",
    "sklearn",
    "pyarrow",
    "altair",
)
COMMANDS = (
    ["--help"],
    ["tasks"],
    ["plugins"],
    ["saes"],
    ["tasks", "--json"],
    ["plugins", "--json"],
    ["saes", "--json"],
)

PROBE = """
import json, sys
from saebench_meta.cli import main
code = 0
heavy, sys.argv = json.loads(sys.argv[1]), ["saebench", *sys.argv[2:]]
try:
    main()
except SystemExit as e:
    code = e.code
print(json.dumps({"code": code, "heavy": [m for m in heavy if m in sys.modules]}), file=sys.stderr)
"""


def probe(*arguments: str, script: str = PROBE) -> dict[str, object]:
    command = [sys.executable, "-c", script, json.dumps(HEAVY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.strip(), done.stdout
    found: dict[str, object] = json.loads(done.stderr.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_listing_imports_nothing_heavy(arguments: list[str]) -> None:
    assert probe(*arguments) == {"code": 0, "heavy": []}


def test_the_probe_sees_a_heavy_import() -> None:
    assert probe("--help", script="import numpy\n" + PROBE)["heavy"] == ["numpy"]


def test_importing_the_package_and_its_plugins_imports_nothing_heavy() -> None:
    script = (
        "import json, sys, saebench_meta, saebench_plugins, saebench_tasks\n"
        "from saebench_meta.plugins import registry\nregistry()\n"
        "heavy = [m for m in json.loads(sys.argv[1]) if m in sys.modules]\n"
        "print(json.dumps({'code': 0, 'heavy': heavy}), file=sys.stderr)"
    )
    assert probe(script=script) == {"code": 0, "heavy": []}


def test_the_benchmark_of_these_commands_runs() -> None:
    script = Path(__file__).parent / "benchmarks" / "bench_startup.py"
    done = subprocess.run(
        [sys.executable, script, "--repeats", "1"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "saebench --help" in done.stdout
