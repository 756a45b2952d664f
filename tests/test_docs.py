"""The documentation says what is there: code in pages is files that run, and nothing public is left out.

`python tests/test_docs.py` writes the files that pages show into the pages.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from saebench_meta import hookspecs, plan
from saebench_meta.cli.group import COMMANDS
from saebench_meta.context import Context
from saebench_meta.errors import SaebenchError
from saebench_meta.plugins import Registry, registry
from saebench_meta.sae import SAEInfo, Site
from saebench_meta.task import CONTROLS

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
INCLUDE = re.compile(r"<!-- file: (?P<path>\S+) -->\n+(?P<block>```\w*\n.*?\n```\n)?", re.DOTALL)
HOOKS = {n for n, f in vars(hookspecs).items() if hasattr(f, "saebench_meta_spec")}
OFFERS = {
    "saebench_loaders": "loaders",
    "saebench_catalogue": "catalogue",
    "saebench_tasks": "tasks",
    "saebench_language_models": "models",
    "saebench_datasets": "datasets",
    "saebench_judges": "judges",
    "saebench_architectures": "architectures",
    "saebench_needs": "needs",
    "saebench_labelled": "labelled",
    "saebench_cities": "cities",
    "saebench_worlds": "worlds",
    "saebench_truths": "truths",
}


def shown(path: str) -> str:
    """The fenced block that stands for a file in a page."""
    kind = {"py": "python", "toml": "toml"}[path.rpartition(".")[2]]
    return f"```{kind}\n{(ROOT / path).read_text().strip()}\n```\n"


def sections(page: str, level: str = "##") -> dict[str, str]:
    """Heading -> text up to the next heading of that level or above."""
    parts = re.split(rf"^{level} (.+)\n", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def first_cells(text: str) -> set[str]:
    """Names in backticks in the first column of a table."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return {re.sub(r"\(.*", "", row.split("`")[1]).removeprefix("ctx.") for row in rows}


def plugin(path: Path) -> tuple[ModuleType, Registry]:
    """An example as a module, and a registry with nothing but it."""
    module = ModuleType(f"example_{path.stem}")
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    found = Registry()
    info = found.register(module)
    assert info.problems == []
    return module, found


# -- pages


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_in_a_page_is_the_file_it_names(page: Path) -> None:
    for match in INCLUDE.finditer(page.read_text()):
        assert match["block"] == shown(match["path"]), f"type: python tests/test_docs.py (for {match['path']})"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_that_a_page_tells_to_type_exist(page: Path) -> None:
    for command in re.findall(r"^\s*(?:\$ )?(?:\.venv/bin/)?saebench ([a-z]+)", page.read_text(), flags=re.MULTILINE):
        assert command in COMMANDS, f"{page.name} tells to type saebench {command}"


def test_every_example_stands_in_a_page() -> None:
    included = {m["path"] for page in PAGES for m in INCLUDE.finditer(page.read_text())}
    assert {f"docs/examples/{p.name}" for p in EXAMPLES} <= included


# -- the hook reference


def test_every_hook_is_documented_and_every_documented_hook_exists() -> None:
    assert set(sections("hooks.md")) == HOOKS


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_a_hooks_section_says_when_what_and_who_wins_and_shows_it(hook: str) -> None:
    section = sections("hooks.md")[hook]
    for label in ("**Called:**", "**Returns:**", "**Which wins:**"):
        assert label in section
    (example,) = [m["path"] for m in INCLUDE.finditer(section)]
    module, found = plugin(ROOT / example)
    assert hasattr(module, hook)
    if hook in OFFERS:
        assert len(getattr(found, OFFERS[hook])) > 0


# -- the plugin writer's page


def part(heading: str) -> str:
    return sections("plugins.md", "###")[heading].partition("\n## ")[0]


def test_every_need_is_documented() -> None:
    documented = first_cells(part("Needs"))
    used = {need for task in registry().tasks.values() for need in task.needs}
    assert used - documented <= set(registry().needs)
    assert documented <= {*plan.MODEL_NEEDS, "reference", "judge", "cities"}


def test_every_control_is_documented() -> None:
    assert first_cells(part("Controls")) == set(CONTROLS)


def test_every_member_of_the_context_is_documented() -> None:
    members = {n for n, _ in inspect.getmembers_static(Context) if not n.startswith("_")}
    assert first_cells(part("The context")) == members


# -- what the examples do


def example(name: str) -> tuple[ModuleType, Registry]:
    return plugin(ROOT / "docs" / "examples" / f"{name}.py")


def test_the_first_plugin_measures_norms() -> None:
    import torch

    task = example("first_plugin")[1].tasks["decoder_norm"]

    class Stub:
        d_sae = 2
        W_dec = torch.tensor([[3.0, 4.0], [0.0, 1.0]])

        def census(self, value: Any, n: int) -> tuple[float, int]:
            return float(value), n

    assert task(Stub(), Stub()).estimates == {"mean_norm": (3.0, 2)}


def test_the_first_plugin_is_ten_lines() -> None:
    assert (
        sum(bool(line.strip()) for line in (ROOT / "docs" / "examples" / "first_plugin.py").read_text().splitlines())
        <= 10
    )


def test_the_identity_sae_rebuilds_everything() -> None:
    import torch

    sae = example("loaders")[1].loaders["identity"].load("3", device="cpu", dtype=torch.float32)
    x = torch.tensor([[1.0, -2.0, 0.0], [0.5, 0.5, -0.5]])
    assert torch.equal(sae.reconstruct(x), x)
    assert sae.encode_sparse(x).l0().tolist() == [2, 3]


def test_the_counting_corpus_counts() -> None:
    loader = example("datasets")[1].datasets["counting"]
    texts = list(loader.documents("2", split=None, revision=None, text_field="text"))
    assert [t[:5] for t in texts] == ["0 1 2", "1 2 3"]
    identities = {loader.peek(ref, split=None, revision=None).sha256 for ref in ("2", "3")}
    assert len(identities) == 2


def test_the_untrained_model_is_the_same_each_time_and_knows_nothing(stories_model_dir: Path) -> None:
    import torch

    loader = example("language_models")[1].models["untrained"]
    ref = str(stories_model_dir)
    state = torch.random.get_rng_state()
    one, two = (loader.load(ref, revision=None, device="cpu", dtype=torch.float32) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    tokens = torch.tensor([one.tokenize(["Once upon a time there was a dog."])[0]])
    logits = one.logits(tokens)
    assert torch.equal(logits, two.logits(tokens))
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
    assert float(loss) > 0.9 * math.log(one.vocab_size)


def test_the_untrained_model_names_what_is_missing(tmp_path: Path) -> None:
    loader = example("language_models")[1].models["untrained"]
    with pytest.raises(SaebenchError, match=r"config.json' is not there\. Give a folder"):
        loader.peek(str(tmp_path), revision=None)


def test_the_constant_judge_takes_its_option_of_every_request() -> None:
    from saebench_meta.judging import Answer, Request

    loader = example("judges")[1].judges["constant"]
    asked = [Request("a", "", "", ("x", "y")), Request("b", "", "")]
    choice, words = loader.make({"option": 3}, None).ask(asked)
    assert choice == Answer(choice=1) and words.text is not None and words.choice is None
    assert loader.make(loader.options, None).ask(asked)[0].choice == 0


def test_the_square_root_architecture_trains() -> None:
    import torch

    from saebench_meta.training.recipe import make_recipe
    from saebench_meta.training.trainer import Trainer

    architecture = example("architectures")[1].architectures["sqrt"]
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)).relu() * 3

    def trained(penalty: float) -> tuple[Trainer, list[Any]]:
        recipe = make_recipe(architecture, "sqrt", d_sae=12, tokens=64 * 60, batch_size=64, lr=0.01, penalty=penalty)
        trainer = Trainer(architecture, recipe, x)
        return trainer, [trainer.step(x) for _ in range(60)]

    weak, strong = trained(0.0)[1], trained(0.1)[1]
    assert weak[-1].sse < weak[0].sse / 2
    assert strong[-1].l0 < weak[-1].l0
    trainer = trained(0.01)[0]
    made, p = trainer.export(), trainer.sae.parameters
    codes = torch.relu(x @ made.W_enc + made.b_enc) * trainer.scale
    torch.testing.assert_close(codes, torch.relu(x * trainer.scale @ p["W_enc"].T + p["b_enc"]).detach())
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(12))


def test_the_need_says_why_it_is_unmet() -> None:
    check = example("needs")[1].needs["middle_layer"]

    def info(hook: str) -> SAEInfo:
        return SAEInfo(name="a", site=Site(model="m", hook=hook), d_in=1, d_sae=1)

    assert check(info("blocks.10.hook_resid_pre")) is None
    assert check(info("blocks.0.hook_resid_pre")) == (
        "it needs an SAE above the first block, and a reads blocks.0.hook_resid_pre"
    )


def test_coins_are_a_world() -> None:
    import torch

    from saebench_meta.worlds import open_world

    world = open_world(example("worlds")[1], "coins:3")
    x, magnitudes = world.sample(1000, 0)
    assert torch.equal(x, magnitudes @ world.directions) and len(world.features) == 3
    assert torch.equal(x, world.sample(1000, 0)[0]) and not torch.equal(x, world.sample(1000, 1)[0])
    assert 0.4 < float((magnitudes > 0).float().mean()) < 0.6


def test_what_is_known_of_counting_fits_its_documents() -> None:
    known = example("truths")[1].truths["counting"]
    corpus = example("datasets")[1].datasets["counting"]
    texts = list(corpus.documents("30", split=None, revision=None, text_field="text"))
    spans = list(known.annotate("30", split=None))
    assert len(texts) == len(spans) == 30
    for text, here in zip(texts, spans, strict=True):
        for start, end, on in here:
            number = int(text[start:end])
            names = {known.features()[i] for i in on}
            assert names == {n for n, true in (("even", number % 2 == 0), ("ends in 0 or 5", number % 5 == 0)) if true}
    assert corpus.peek("1000", split=None, revision=None).ref in known.corpora


def test_the_listener_logs_what_ends(caplog: pytest.LogCaptureFixture) -> None:
    from saebench_meta.events import Notice, UnitFinished

    _, found = example("events")
    with caplog.at_level("INFO"):
        found.emit(Notice("info", "not this"))
        found.emit(UnitFinished("core", "sae-1", "ok", 1.5))
    assert [r.getMessage() for r in caplog.records] == ["core on sae-1: ok after 1.5 s"]


def write() -> None:
    """Bring the code in all pages up to date."""
    for page in PAGES:
        text = page.read_text()
        new = INCLUDE.sub(lambda m: f"<!-- file: {m['path']} -->\n{shown(m['path'])}", text)
        if new != text:
            page.write_text(new)
            sys.stdout.write(f"{page.relative_to(ROOT)}\n")


if __name__ == "__main__":
    write()
