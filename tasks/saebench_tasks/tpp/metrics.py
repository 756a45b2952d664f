"""What the task reports, and which order of controls its score should show."""

from __future__ import annotations

from saebench_meta.task import Metric

SIZES = (2, 5, 10, 20, 50, 100, 500)
"""How many latents are ablated: n of the stock protocol."""

_EXPERIMENTAL = "experimental: arXiv 2605.18229 found this order broken at the stock settings; "
_NULL = "random latents stand for no class, so this says what ablating as many of any kind does"
_PROBES = "a property of the language model and the set, not of the SAE"

METRICS = (
    Metric(
        "tpp",
        "higher",
        "accuracy",
        main=True,
        of="(intended - unintended) / texts",
        expects="oracle>trained>random",
        why=_EXPERIMENTAL + "latents that stand for a class each should hurt its probe alone",
        help="Intended minus unintended fall of accuracy, mean over log n from 2 to 500 latents; mean over sets.",
    ),
    Metric(
        "intended",
        "higher",
        "accuracy",
        main=True,
        of="intended / texts",
        why="random directions that all lean towards one probe may hurt it as much, and others with it",
        help="Fall of accuracy of the probe whose class's latents are ablated, mean over log n.",
    ),
    Metric(
        "unintended",
        "lower",
        "accuracy",
        main=True,
        of="unintended / texts",
        why="an SAE whose ablation does nothing at all has the best value",
        help="Fall of accuracy of the other probes, mean over log n.",
    ),
    *(
        Metric(
            f"tpp_{n}",
            "higher",
            "accuracy",
            of=f"score_{n} / texts",
            expects="oracle>trained>random",
            why=_EXPERIMENTAL + "as for tpp",
            help=f"Intended minus unintended fall with the first {n} latents of each class ablated.",
        )
        for n in SIZES
    ),
    Metric(
        "tpp_random",
        "neither",
        "accuracy",
        of="random / texts",
        why=_NULL,
        help="tpp with as many latents drawn from those active on the training texts, mean over draws.",
    ),
    Metric(
        "intended_random",
        "neither",
        "accuracy",
        of="random_intended / texts",
        why=_NULL,
        help="The intended fall of the same random latents.",
    ),
    Metric(
        "random_above",
        "lower",
        "fraction",
        why="with random directions too, ranked latents do more than latents drawn from them",
        help="Share of the draws of random latents whose tpp is at least that of the ranked latents of their trial.",
    ),
    Metric(
        "probe_accuracy", "neither", "fraction", of="accuracy / texts", why=_PROBES, help="Of the probes, unablated."
    ),
    Metric(
        "reseed_sd",
        "neither",
        "accuracy",
        why="a noisier dictionary is not a worse one",
        help="Standard deviation of tpp over trials, which differ in the training texts of probes and ranking.",
    ),
)

_WIDTH = "the paper finds a downward trend over width, not a monotone one"

FAMILY_METRICS = tuple(
    Metric(name, "higher", "accuracy", main=True, of=f"{name} / texts", why=_EXPERIMENTAL + _WIDTH, help=f"tpp {of}.")
    for name, of in (
        ("mean", "of the SAEs of the family, mean"),
        ("narrowest", "of the SAE with the fewest latents"),
        ("widest", "of the SAE with the most latents"),
    )
)
