"""What is on in documents that count, for SAEs on GPT-2: even numbers, and those that end in 0 or 5."""

import re

from saebench_meta import KnownTruth, hookimpl

saebench_api = 1

FEATURES = ("even", "ends in 0 or 5")


def on(number):
    return tuple(i for i, true in enumerate((number % 2 == 0, number % 5 == 0)) if true)


def annotate(ref, *, split):
    """The same documents in the same order as the corpus `counting` gives them."""
    for start in range(int(ref)):
        text = " ".join(str(n) for n in range(start, start + 20))
        yield [(m.start(), m.end(), on(int(m[0]))) for m in re.finditer(r"\d+", text)]


@hookimpl
def saebench_truths():
    known = KnownTruth(
        model="gpt2",
        oracles={},  # such as {"blocks.8.hook_resid_pre": "ourlab:numbers-oracle"}
        corpora=("counting:1000",),
        features=lambda: FEATURES,
        annotate=annotate,
    )
    return {"counting": known}
