"""Judges: which one a run asks and with what options, what that costs beforehand, and what the command line says."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
import quiz_plugin
import toy_plugin
from click.testing import CliRunner, Result
from quiz_plugin import OPTIONS, PAID, Bent
from record_samples import record, write

from saebench_meta.cli import run, saebench
from saebench_meta.cli.options import settings_of
from saebench_meta.errors import PluginError, SaebenchError, UnknownNameError, UnmetNeedError
from saebench_meta.hookspecs import hookimpl
from saebench_meta.judge_costs import dollars, estimate, judge_notices
from saebench_meta.judges import ResolvedJudge, judge_options
from saebench_meta.judging import Asked, JudgeLoader
from saebench_meta.plan import Plan, Unit, describe, make_plan
from saebench_meta.plugins import Registry
from saebench_meta.record import JudgeUsed
from saebench_meta.settings import Settings, parse_judge_options
from saebench_meta.task import Metric, task
from saebench_meta.testing import attempt_all, battery
from saebench_meta.testing.declared import task_faults

PRICED = {"price_in": "1", "price_out": "10"}
"""US dollars for a million tokens."""


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    """Toy SAEs, the quiz and its judges, and a folder of this test's own to stand in."""
    Bent.reset()
    found = Registry()
    for plugin, name in ((toy_plugin, "toy"), (quiz_plugin, "quizzes")):
        assert found.register(plugin, name).problems == []
    monkeypatch.setattr("saebench_meta.plugins.registry", lambda: found)
    monkeypatch.chdir(tmp_path)
    return found


def settings(**fields: Any) -> Settings:
    return Settings(**{"saes": ("toy:x-8",), "tasks": ("quiz",), "judge": "paid", **fields})


def planned(registry: Registry, **fields: Any) -> Unit:
    (unit,) = make_plan(registry, settings(**fields)).units
    return unit


def judge_of(registry: Registry, **fields: Any) -> ResolvedJudge:
    judge = planned(registry, **fields).judge
    assert judge is not None
    return judge


# -- which judge, with what options


def test_the_default_judge_is_lexical_and_naming_it_changes_nothing(registry: Registry) -> None:
    unit = planned(registry, judge=None)
    assert unit.judge is not None and unit.judge.name == "lexical" and unit.unmet is None
    assert unit.place.id == planned(registry, judge="lexical").place.id


def test_without_a_judge_at_all_the_need_is_unmet() -> None:
    module = types.ModuleType("judgeless")
    module.__dict__.update(saebench_api=1, saebench_tasks=hookimpl(lambda: [quiz_plugin.quiz]))
    bare = Registry()
    for plugin in (toy_plugin, module):
        bare.register(plugin)
    with pytest.raises(UnmetNeedError, match="needs a judge: give --judge NAME"):
        planned(bare, judge=None)
    (unit,) = make_plan(bare, settings(judge=None, tasks=("quiz*",))).units
    assert unit.unmet is not None and describe(unit, settings())["judge"] is None


@pytest.mark.parametrize("tasks", ["quiz", "all"])
def test_an_unknown_judge_ends_the_plan_with_a_suggestion(registry: Registry, tasks: str) -> None:
    with pytest.raises(UnknownNameError, match="no judge is called 'payed'; did you mean 'paid'"):
        make_plan(registry, settings(judge="payed", tasks=(tasks,)))


def test_two_plugins_with_one_judge_are_both_named(registry: Registry) -> None:
    module = types.ModuleType("rival")
    module.__dict__.update(saebench_api=1, saebench_judges=hookimpl(lambda: {"paid": PAID}))
    registry.register(module)
    with pytest.raises(PluginError, match=r"judge 'paid' is claimed by plugins 'quizzes'.*'rival'"):
        planned(registry)


def test_a_judge_that_is_no_loader_is_its_plugins_fault() -> None:
    module = types.ModuleType("old")
    module.__dict__.update(saebench_api=1, saebench_judges=hookimpl(lambda: {"old": Bent}))
    assert "judge 'old' is a type, expected JudgeLoader" in Registry().register(module).problems[0]


def test_options_take_the_type_of_their_default_however_they_are_given() -> None:
    typed = parse_judge_options(("model=7", "seed=3", "timeout=5", "exact=false", "price_in=0.15"))
    assert judge_options("paid", PAID, typed) == {
        "model": "7", "seed": 3, "timeout": 5.0, "exact": False, "price_in": "0.15", "price_out": None
    }  # fmt: skip
    assert judge_options("paid", PAID, {"price_in": 0.15, "timeout": 5})["price_in"] == "0.15"
    assert judge_options("paid", PAID, {}) == OPTIONS


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"modle": "x"},
            "judge 'paid' has no option 'modle' .*model=small, seed=0, timeout=30.0, exact=True, price_in=",
        ),
        ({"seed": "1.5"}, "-J seed=1.5: expected int, e.g. 0"),
        ({"seed": "many"}, "-J seed='many': expected int"),
        ({"seed": True}, "-J seed=True: expected int"),
        ({"exact": "perhaps"}, "-J exact='perhaps': expected bool"),
        ({"timeout": "NaN"}, "-J timeout=nan: the value must be finite"),
        ({"model": 7}, "-J model=7: expected a text, e.g. 'small'"),
        ({"price_in": [1]}, r"-J price_in=\[1\]: expected a text"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_read(registry: Registry, given: dict[str, Any], said: str) -> None:
    with pytest.raises(SaebenchError, match=said):
        make_plan(registry, settings(saes=("nowhere",), judge_options=given))


def test_a_judge_without_options_says_so(registry: Registry) -> None:
    with pytest.raises(UnknownNameError, match=r"judge 'lexical' has no option 'model' \(it has none\)"):
        planned(registry, judge=None, judge_options={"model": "x"})


def test_options_for_no_task_that_asks_are_an_error(registry: Registry) -> None:
    with pytest.raises(SaebenchError, match="-J sets 'seed', but no task of this run asks a judge"):
        make_plan(registry, settings(tasks=("toy_width",), judge_options={"seed": 1}))


@pytest.mark.parametrize("pair", ["secret-key", "=x"])
def test_a_pair_without_a_name_is_not_repeated_in_the_message(pair: str) -> None:
    with pytest.raises(SaebenchError, match="-J expects name=value") as e:
        parse_judge_options((pair,))
    assert "secret" not in str(e.value)


def test_the_id_holds_what_the_answers_depend_on_and_nothing_else(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = planned(registry).place.id
    same: list[dict[str, Any]] = [{"judge_options": {"timeout": 1.0}}, {"judge_options": PRICED}, {"max_cost": 1.0}]
    other: list[dict[str, Any]] = [
        {"judge": None},
        {"judge_options": {"model": "large"}},
        {"judge_options": {"seed": 1}},
    ]
    assert {planned(registry, **fields).place.id for fields in same} == {base}
    ids = {base, *(planned(registry, **fields).place.id for fields in other)}
    monkeypatch.setitem(quiz_plugin.PROMPT, "question", "Which one is {n}?")
    ids.add(planned(registry).place.id)
    monkeypatch.undo()
    assert len(ids) == 5


def test_prompts_and_asks_belong_to_tasks_that_need_a_judge() -> None:
    with pytest.raises(ValueError, match="its needs do not name 'judge'"):
        task("odd", version=1, metrics=[Metric("one", better="neither", unit="1")], prompts=dict)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), True])
def test_a_cost_limit_is_an_amount_of_money(value: float) -> None:
    with pytest.raises(SaebenchError, match=r"max_cost is .*: give US dollars"):
        Settings(max_cost=value)


def test_a_run_that_names_no_judge_says_which_answers(registry: Registry) -> None:
    said = "no judge is named, lexical answers (costs nothing); --judge NAME asks another"
    assert make_plan(registry, settings(judge=None)).notices == (said,)
    for quiet in ({"judge": "lexical"}, {"judge": None, "tasks": ("toy_width",)}):
        assert make_plan(registry, settings(**quiet)).notices == ()


# -- how much is asked, and what it costs


def test_the_estimate_is_tokens_times_prices(registry: Registry) -> None:
    judge = judge_of(registry, judge_options=PRICED)
    asked = [Asked("a", 1000, 100, 10, 300, 64), Asked("b", 10, 2000, 50, 4000, 200)]
    found = estimate(judge, asked)
    assert (found.requests, found.prompt_tokens, found.completion_tokens) == (1010, 120_000, 10_500)
    assert found.cost == pytest.approx(0.12 + 0.105)
    assert found.cost_at_most == pytest.approx(0.34 + 0.66)
    assert found.in_words(judge).endswith("120,000 prompt and 10,500 answer tokens, about $0.23, at most $1.00")
    unbounded = estimate(judge, [*asked, Asked("c", 1, 1, 1)])
    assert unbounded.cost_at_most is None and unbounded.in_words(judge).endswith("about $0.23")


def test_free_and_unknown_prices_are_told_apart(registry: Registry) -> None:
    free, unknown = judge_of(registry, judge=None), judge_of(registry)
    assert estimate(free, [Asked("a", 1, 1, 1)]).in_words(free) == "1 requests, 1 prompt and 1 answer tokens, free"
    told = estimate(unknown, [Asked("a", 1, 1, 1)])
    assert told.cost is None and told.in_words(unknown).endswith("price not known: give -J price_in= and -J price_out=")


@pytest.mark.parametrize(
    ("amount", "shown"), [(0.0, "$0.00"), (1e-9, "$0.0001"), (0.0042, "$0.0042"), (1234.5, "$1,234.50")]
)
def test_dollars_are_shown_in_cents(amount: float, shown: str) -> None:
    assert dollars(amount) == shown


def test_subject_and_every_control_ask_as_much(registry: Registry) -> None:
    unit = planned(registry)
    assert unit.controls == ("permuted_columns",) and unit.asked is not None
    assert [a.requests for a in unit.asked] == [2 * 8]
    assert planned(registry, limit=3).asked == (Asked("choose_number", 6, 100, 10, 200, 64),)
    assert planned(registry, tasks=("silent_quiz",)).asked is None


def notices(made: Plan, chosen: Settings) -> list[tuple[str, str]]:
    return [(n.level, n.message) for n in judge_notices(made.units, chosen)]


def test_before_a_judge_that_costs_money_the_run_says_how_much(registry: Registry) -> None:
    chosen = settings(saes=("toy:x-8", "toy:x-16"), judge_options=PRICED)
    made = make_plan(registry, chosen)
    [(level, message)] = notices(made, chosen)
    assert (
        level == "info"
        and "judge paid: 48 requests, 4,800 prompt and 480 answer tokens, about $0.0096, at most $0.04" in message
    )
    assert notices(made, settings(max_cost=1.0)) == [(level, message)]
    [_, (level, message)] = notices(made, settings(max_cost=0.001))
    assert level == "warning" and "more than --max-cost 0.001" in message and "what is answered is kept" in message
    free = settings(judge=None)
    assert notices(make_plan(registry, free), free) == []


def test_a_task_that_does_not_say_how_much_it_asks_is_named(registry: Registry) -> None:
    chosen = settings(tasks=("quiz,silent_quiz",), judge_options=PRICED)
    [(_, message)] = notices(make_plan(registry, chosen), chosen)
    assert message == "judge paid: silent_quiz does not say beforehand how much it asks; --max-cost USD limits it"
    [(_, message)] = notices(make_plan(registry, chosen), settings(max_cost=2.0))
    assert message.endswith("at most $2.00")


# -- the command line


def call(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(saebench, list(arguments), env=environment)


QUIZ = ("run", "--sae", "toy:x-8", "--tasks", "quiz")
PAY = ("--judge", "paid", "-J", "price_in=1", "-J", "price_out=10")


def test_a_dry_run_shows_what_is_asked_of_the_judge_each_and_together() -> None:
    done = call(*QUIZ, "--sae", "toy:x-16", *PAY, "--dry-run")
    assert done.exit_code == 0 and Bent.made == Bent.checked == []
    assert (
        "asks judge paid: quiz on toy-x-8: 16 requests, 1,600 prompt and 160 answer tokens, about $0.0032, at"
        in done.output
    )
    assert "asks judge paid, all together: 48 requests, 4,800 prompt" in done.output
    assert "tokens, free" in call(*QUIZ, "--dry-run").output
    assert (
        "silent_quiz on toy-x-8: it does not say how much"
        in call("run", "--sae", "toy:x-8", "--tasks", "silent_quiz", "--dry-run").output
    )


def test_a_dry_run_for_machines_says_the_same_without_what_may_be_secret() -> None:
    done = call(*QUIZ, *PAY, "--dry-run", "--json")
    unit, total = (json.loads(line) for line in done.stdout.splitlines())
    judge = unit["judge"]
    assert (judge["name"], judge["version"], judge["options"]) == ("paid", 3, {"model": "small", "seed": 0})
    assert len(judge["prompts"]["question"]) == 64 and judge["asked"][0]["requests"] == 16
    assert total["event"] == "JudgePlanned" and total["requests"] == judge["requests"] == 16
    assert total["cost_usd"] == pytest.approx(1600e-6 + 1600e-6)
    assert total["cost_usd_at_most"] == pytest.approx(3200e-6 + 10240e-6)


def test_a_judge_that_cannot_be_asked_is_one_line_and_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_plugin, "load", lambda *a, **k: pytest.fail("it was loaded"))
    done = call(*QUIZ, *PAY, "-J", "model=gone")
    assert done.exit_code == 2 and done.stdout == "" and Bent.made == []
    assert done.stderr == "error: the server has no model 'gone': give another one with -J model=NAME\n"


def typed(*arguments: str) -> Settings:
    """What a command line, with file, record and environment, makes of its options."""
    with run.command.make_context("run", list(arguments)) as ctx:
        return settings_of(ctx, ctx.params)


def test_options_come_from_command_line_environment_and_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        '[run]\njudge = "paid"\nmax-cost = 1\n[judge]\nmodel = "filed"\nseed = 4\ntimeout = 9\n'
    )
    quiz = (*QUIZ[1:], "--config", "run.toml")
    found = typed(*quiz, "-J", "seed=5")
    assert (found.judge, found.max_cost) == ("paid", 1.0)
    assert found.judge_options == {"model": "filed", "seed": "5", "timeout": 9}
    assert typed(*quiz, "--judge", "lexical").judge_options == {}  # those of the file are another judge's
    assert typed("--sae", "toy:x-8", "--tasks", "toy_width", "--config", "run.toml").judge_options == {}  # none asks
    monkeypatch.setenv("SAEBENCH_JUDGE_OPTION", "model=environed timeout=2")
    assert typed(*quiz).judge_options == {"model": "environed", "seed": 4, "timeout": "2"}


def test_a_record_gives_judge_and_options_unless_another_judge_is_named(tmp_path: Path) -> None:
    judge = JudgeUsed(name="paid", version="3", options={"model": "kept", "seed": 2, "files": {"a": "0"}})
    made = record(name="x-8", task="quiz")
    plain = made.task.model_copy(update={"parameters": {}})
    folder = str(write(tmp_path, made.model_copy(update={"judge": judge, "task": plain})))
    found = typed("--from-record", folder, "-J", "seed=3")
    assert (found.judge, found.judge_options) == ("paid", {"model": "kept", "seed": "3"})
    assert typed("--from-record", folder, "--judge", "lexical").judge_options == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[run]\njudge-option = ["a=b"]\n', "write a table instead: [judge]"),
        ('[run]\nmax-cost = "1"\n', "max-cost: expected a number, got '1'"),
        ('[judge]\nmodle = "x"\n', "has no option 'modle'"),
        ("judge = 1\n", "'judge' is a int, expected a table"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    done = call(*QUIZ, "--judge", "paid", "--config", "run.toml")
    assert done.exit_code == 2 and said in done.stderr


def test_a_command_to_type_next_repeats_the_judge_and_the_limit(registry: Registry) -> None:
    chosen = settings(judge_options={"model": "large", "seed": 3}, max_cost=0.5)
    typed = run.what_to_type(planned(registry), "give --corpus", chosen)
    assert typed is not None and "--judge paid -J model=large -J seed=3 --max-cost 0.5" in typed
    again = run.what_to_type(planned(registry), "a higher --max-cost USD", chosen)
    assert again is not None and again.count("--max-cost") == 1 and "--max-cost USD" in again


def test_plugins_lists_judges_with_their_options_by_either_name() -> None:
    for name in ("quizzes", "paid"):
        text = call("plugins", name).stdout
        assert "judge paid@3 (plugin quizzes, (registered by hand)): costs money" in text
        assert "-J timeout=30.0" in text and "-J price_in=\n" in text
        assert ("judge lexical@1" in text) == (name == "quizzes")
    facts = json.loads(call("plugins", "quizzes", "--json").stdout)
    assert {j["name"]: j["options"] for j in facts["judges"]}["paid"] == OPTIONS
    assert json.loads(call("plugins", "paid", "--json").stdout)["options"] == OPTIONS
    assert "no plugin is called 'payed'; did you mean 'paid'?" in call("plugins", "payed").stderr


def test_a_task_shows_the_hashes_of_its_prompts(registry: Registry) -> None:
    digest = planned(registry).prompts["question"]
    assert f"prompt question: sha256 {digest[:12]}" in call("tasks", "quiz").stdout
    assert json.loads(call("tasks", "quiz", "--json").stdout)["prompts"] == {"question": digest}


def test_a_check_says_what_a_task_that_asks_leaves_undone(registry: Registry) -> None:
    assert task_faults(registry, quiz_plugin.quiz) == []
    faults = " ".join(task_faults(registry, quiz_plugin.silent_quiz))
    assert "does not say how much (`asks`)" in faults and "does not show its prompts" in faults

    def unreadable() -> dict[str, str]:
        raise FileNotFoundError("question.txt")

    metrics = [Metric("one", better="neither", unit="1", main=True, help="one")]
    for prompts, fault in ((unreadable, "FileNotFoundError: question.txt"), (dict, "`prompts` gives no prompt")):
        made = task(
            "odd", version=1, needs=["judge"], metrics=metrics, controls=(), prompts=prompts, asks=quiz_plugin.asks
        )
        assert [f for f in task_faults(registry, made(quiz_plugin.quiz.function)) if fault in f]


def test_a_check_of_a_plugin_looks_at_its_judges(registry: Registry) -> None:
    odd = JudgeLoader(Bent, options={"model": "", "servers": ["a"], "depth": None}, summary="odd")
    module = types.ModuleType("odd")
    module.__dict__.update(saebench_api=1, saebench_judges=hookimpl(lambda: {"odd": odd}))
    registry.register(module)
    faults = [o.reason for o in attempt_all(battery("odd", registry=registry)) if o.status == "fault"]
    assert "these options are no text, number or truth value, so -J cannot set them: servers" in faults


def test_the_smallest_loader_needs_nothing_but_make() -> None:
    loader = JudgeLoader(Bent)
    judge = ResolvedJudge("small", loader, {}, "here:small")
    assert judge.key({}) == {"name": "small", "version": 1, "options": {}, "prompts": {}} and judge.is_free
