"""What the task reports, and which order of controls its scores should show."""

from __future__ import annotations

from saebench_meta.task import Metric

_BY_CHANCE = "a control of the questions: it must be at chance, whatever the dictionary"
_SAMPLE = "it depends on how large the sample is: latents that fire seldom are missed by a small one"
_META = (
    "asked for the SAE itself only: a meta-SAE of random directions has nothing to find, and a high accuracy says that "
    "latents are less atomic, not that they are better"
)

METRICS = (
    Metric(
        "latent_accuracy",
        "higher",
        "fraction",
        main=True,
        expects="oracle>trained>random",
        why="what a latent fires on can be told in words the better, the nearer the latent is to one feature",
        help="Questions answered right: which of five marked passages is of the latent that is described? Chance .20.",
    ),
    Metric(
        "latent_accuracy_shuffled",
        "neither",
        "fraction",
        why=_BY_CHANCE,
        help="The same questions with the explanation of another latent.",
    ),
    Metric(
        "meta_accuracy",
        "higher",
        "fraction",
        main=True,
        why=_META,
        help="Questions answered right: of which of five latents are these meta-latents? Chance .20.",
    ),
    Metric(
        "meta_accuracy_left_out",
        "higher",
        "fraction",
        why=_META,
        help="The same with meta-latents explained without the latent that is asked about.",
    ),
    Metric(
        "meta_accuracy_shuffled",
        "neither",
        "fraction",
        why=_BY_CHANCE,
        help="The same with the meta-latents of another latent.",
    ),
    Metric(
        "no_meta_share",
        "neither",
        "fraction",
        why="how sparse a meta-SAE is follows from how it is trained",
        help="Share of latents asked about on which no meta-latent is active; they count as chance.",
    ),
    Metric(
        "unanswered_share",
        "lower",
        "fraction",
        why="it depends on the judge, not on the dictionary",
        help="Share of all questions without an answer; they are left out of the accuracies.",
    ),
    Metric("dead_share", "lower", "fraction", why=_SAMPLE, help="Share of latents that fire nowhere in the sample."),
    Metric(
        "dense_share",
        "neither",
        "fraction",
        why="whether dense latents are a fault is not settled",
        help="Share of latents that fire on too many tokens to be asked about.",
    ),
    Metric(
        "askable_share",
        "neither",
        "fraction",
        why=_SAMPLE,
        help="Share of latents that can be asked about: neither dead nor dense, and in enough documents.",
    ),
)
