"""Whatever is put under the results: it is refused with a reason of one line, and no page is made of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hostile import Hostile, hostile, hostile_texts, sound

from saebench_meta.leaderboard.assemble import of_checks
from saebench_meta.leaderboard.rules import Bench
from saebench_meta.leaderboard.texts import value_faults
from saebench_meta.leaderboard.validate import check_results
from saebench_meta.plugins import registry

ATTACKS = list(hostile())


def test_there_are_hundreds_of_different_ones() -> None:
    assert len(ATTACKS) >= 300
    assert len({a.name for a in ATTACKS}) == len(ATTACKS)


def test_the_record_they_are_made_of_is_taken(tmp_path: Path) -> None:
    base, documents, where = sound()
    import json

    Hostile("none", json.dumps(base).encode(), documents, where).put(tmp_path / "results")
    checks = check_results(tmp_path / "results", Bench(registry()))
    assert not checks.problems
    assert len(of_checks(checks, Bench(registry())).rows) == 2


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_each_is_refused_with_a_reason(attack: Hostile, tmp_path: Path) -> None:
    results = tmp_path / "a" / "results"
    attack.put(results)
    checks = check_results(results, Bench(registry()))
    assert checks.problems
    for problem in checks.problems:
        said = str(problem)
        assert problem.reason and len(said) < 1_300
        assert said.isprintable()


def test_a_record_with_one_bad_text_is_refused_for_that_text() -> None:
    for name, record in hostile_texts():
        assert list(value_faults(record)), name


def test_what_is_refused_makes_no_row(tmp_path: Path) -> None:
    results = tmp_path / "a" / "results"
    seen: Counter[str] = Counter()
    for attack in ATTACKS:
        if attack.touch is None and not seen[attack.where]:
            seen[attack.where] += 1
            attack.put(results)
    bench = Bench(registry(), intervals=False)
    made = of_checks(check_results(results, bench), bench)
    assert not made.rows
    assert any("kept out" in warning for warning in made.warnings)
