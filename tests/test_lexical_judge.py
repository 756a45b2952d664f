"""The judge `lexical`: explanations and choices worked out by hand, answers that depend on their request alone."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saebench_meta.judging import Answer, Request
from saebench_plugins.judges import lexical

SERVICES: Any = SimpleNamespace(progress=lambda done, total: None)
WORDS = ["paris", "capital", "river", "France", "«the»", "«Berlin»", "é", "首都", "«!»", "42", "not", "of", "ca"]
texts = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
questions = st.builds(lambda options, about: choice(about, *options), st.lists(texts, min_size=2, max_size=5), texts)


def ask(requests: Sequence[Request]) -> list[Answer]:
    return lexical.LOADER.make({}, SERVICES).ask(requests)  # type: ignore[return-value]


def choice(about: str, *options: str) -> Request:
    return Request("choose_latent", "", "", options, {"description": about})


def passage(text: str) -> dict[str, Any]:
    """A passage whose marked words fire with 1, with 2 where there are two marks on either side."""
    tokens, activations = [], []
    for word in text.split():
        strength = len(word) - len(word.lstrip("«"))
        tokens.append(" " + word.strip("«»"))
        activations.append(float(strength))
    return {"tokens": tokens, "activations": activations}


def explained(*passages: dict[str, Any]) -> str | None:
    facts = {"passages": list(passages), "maximum": 2.0}
    return ask([Request("explain_latent", "", "", (), facts)])[0].text


# -- explanations


def test_tokens_are_named_by_their_share_of_the_activation() -> None:
    line = explained(passage("««Rome»» sleeps"), passage("«Oslo» wakes"), passage("«rome» and «Oslo» again"))
    assert line is not None
    assert line.startswith("«rome», «oslo»; near: ")  # 3 of 5, 2 of 5


def test_tokens_of_little_activation_are_not_named() -> None:
    strong = {"tokens": [" Rome", " dust"], "activations": [9.7, 0.3]}
    assert explained(strong) == "«rome»; near: dust"


def test_words_that_stand_everywhere_drop_out_behind_those_that_stand_near() -> None:
    far = "filler one two three four five six seven eight"
    line = explained(
        passage(f"capital city «Rome» {far} moss"),
        passage(f"the capital «Oslo» {far} fern"),
        passage(f"a capital «Bonn» {far} moss filler"),
    )
    assert line is not None
    near = line.split("near: ")[1].split(", ")
    assert near[0] == "capital"
    assert not {"the", "a", "moss", "fern"} & set(near)  # glue of the language, and what is too far


def test_pieces_of_a_word_that_fire_together_are_one_as_in_marked_passages() -> None:
    joined = {"tokens": ["In", " Buch", "arest", ",", " rain"], "activations": [0.0, 1.0, 2.0, 1.0, 0.0]}
    assert explained(joined) == "«bucharest», «,»; near: rain"
    part = {"tokens": ["In", " Buch", "arest"], "activations": [0.0, 0.0, 2.0]}
    assert explained(part) == "«arest»; near: bucharest"


def test_white_space_that_fires_has_a_name() -> None:
    assert explained({"tokens": ["a", " ", "b"], "activations": [0.0, 1.0, 0.0]}) == "«␣»"


@pytest.mark.parametrize("passages", [[], [passage("nothing fires here")]])
def test_nothing_that_fires_leaves_nothing_to_explain(passages: list[dict[str, Any]]) -> None:
    facts = {"passages": passages, "maximum": 0.0}
    assert ask([Request("explain_latent", "", "", (), facts)])[0].problem == "empty"


def test_a_meta_latent_is_what_most_of_its_latents_share() -> None:
    latents = [
        {"explanation": "«rome»; near: capital, forum", "passages": ["the capital «Rome» of Italy"]},
        {"explanation": "«oslo»; near: capital, fjord", "passages": ["«Oslo» is a harbour, «capital»"]},
        {"explanation": "«bonn»; near: harbour", "passages": ["in «Bonn» by the river", "«oslo»"]},
    ]
    line = ask([Request("explain_meta_latent", "", "", (), {"latents": latents})])[0].text
    assert line is not None
    tokens, near = line.split("; near: ")
    assert tokens.split(", ") == ["«oslo»", "«bonn»", "«rome»", "«capital»"]  # 2 + 1, 2, 2, 1
    assert near.split(", ")[:3] == ["harbour", "fjord", "forum"]  # 1 + 2, 2, 2; `capital` is named above


def test_facts_of_another_kind_get_no_answer() -> None:
    answer = ask([Request("rate", "", "How good?", (), {"score": 3})])[0]
    assert (answer.text, answer.choice, answer.problem) == (None, None, "unsupported")


# -- choices

CHOICES = [
    ("fires on «rome»; near: capital", ["in «Rome» today", "the «rain» fell", "«of» course"], 0),
    ("«!»", ["stop «.» now", "stop «!» now", "stop! «now»"], 1),
    ("«;»; near: return", ["x = «1»; return", "return x«;»", "«return» x;"], 1),
    ("«москва»; near: столица", ["«Oslo» är", "«Москва» столица", "«Rom» ist"], 1),
    ("near: 首都", ["河«水»", "法国首都«巴»", "«山»上"], 1),
    ("near: capitals", ["«a» capital", "«a» harbour", "«a» river"], 0),
    ("«a»; near: river, bank", ["the «a» shop", "a «the» river bank", "«a» river, a bank"], 2),
]


@pytest.mark.parametrize(("about", "options", "right"), CHOICES)
def test_the_option_that_shares_most_with_the_description_is_chosen(about: str, options: list[str], right: int) -> None:
    assert ask([choice(about, *options)])[0].choice == right


def test_what_every_option_has_decides_nothing() -> None:
    weak, strong = lexical.similarities([choice("", "sun sun sun rain", "sun moss", "sun fern")], ["sun sun rain"])[0][
        [1, 0]
    ]
    assert 0 < weak < strong / 4


def test_descriptions_of_several_meta_latents_are_read_together() -> None:
    facts = {"descriptions": ["«rome»", "near: forum"]}
    options = ("«rome»; near: harbour", "«rome»; near: forum", "«oslo»; near: forum")
    assert ask([Request("choose_meta", "", "", options, facts)])[0].choice == 1


def cosine(about: str, options: Sequence[str], k: int) -> float:
    """The docstring of `similarities`, text by text."""
    df = Counter(t for option in options for t in set(lexical.features(option)))

    def weights(text: str) -> dict[str, float]:
        counts = Counter(lexical.features(text))
        return {t: (1 + math.log(n)) * math.log((len(options) + 1) / df[t]) for t, n in counts.items() if t in df}

    a, b = weights(about), weights(options[k])
    norm = math.sqrt(sum(w * w for w in a.values()) * sum(w * w for w in b.values()))
    return sum(w * b.get(t, 0.0) for t, w in a.items()) / norm if norm else 0.0


@given(st.lists(questions, min_size=1, max_size=6))
def test_similarities_are_those_worked_out_one_by_one(requests: list[Request]) -> None:
    abouts = [lexical.description(r) for r in requests]
    for request, about, found in zip(requests, abouts, lexical.similarities(requests, abouts), strict=True):
        expected = [cosine(about, request.options, k) for k in range(len(request.options))]
        assert found.tolist() == pytest.approx(expected, abs=1e-8)


@given(st.lists(questions, min_size=1, max_size=6), st.randoms())
def test_an_answer_depends_on_its_request_alone(requests: list[Request], shuffler: random.Random) -> None:
    together = dict(zip(map(id, requests), ask(requests), strict=True))
    shuffler.shuffle(requests)
    assert [together[id(r)] for r in requests] == ask(requests) == [ask([r])[0] for r in requests]


@given(questions, st.randoms())
def test_the_order_of_the_options_does_not_matter(request: Request, shuffler: random.Random) -> None:
    order = list(range(len(request.options)))
    shuffler.shuffle(order)
    about = request.facts["description"]
    first, second = ask([request, choice(about, *(request.options[i] for i in order))])
    assert first.choice is not None
    assert second.choice is not None
    assert request.options[first.choice] == request.options[order[second.choice]]


@pytest.mark.parametrize("same", [False, True], ids=["different options", "equal options"])
@pytest.mark.parametrize("about", ["", "word that none has"])
def test_a_tie_is_settled_by_chance_not_by_place(about: str, same: bool) -> None:
    n = 2000
    requests = [
        choice(f"{about} {i}" if about else "", *(f"x{i}" if same else f"x{i}-{k}" for k in range(5))) for i in range(n)
    ]
    counts = Counter(answer.choice for answer in ask(requests))
    deviation = math.sqrt(n * 0.2 * 0.8)
    assert all(abs(counts[k] - n / 5) < 4 * deviation for k in range(5))


def test_asking_the_same_again_under_another_number_settles_ties_anew() -> None:
    requests = [Request("choose_latent", "", "", ("a", "b", "c"), {"description": ""}, sample=n) for n in range(40)]
    assert {answer.choice for answer in ask(requests)} == {0, 1, 2}


def test_answers_cost_nothing_and_nothing_is_asked_of_an_empty_list() -> None:
    assert ask([]) == []
    assert [answer.cost for answer in ask([choice("a", "a", "b"), Request("x", "", "")])] == [0.0, 0.0]
