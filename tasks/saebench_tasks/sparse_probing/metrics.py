"""What the task reports, and which order of controls each number should show."""

from __future__ import annotations

from typing import Any

from saebench_meta.task import Metric

KS = (1, 2, 5, 10, 20, 50)
MAIN = (1, 50)
"""The paper's."""
FEW = 5
"""Up to so many latents, a dictionary whose latents are the true features should be ahead of a trained one."""

_CONCEPTS = (
    "classes are features of the world: an oracle has them as single latents, training finds some, and a random "
    "direction meets one by chance only"
)
_MANY = (
    "with many latents any dictionary carries most of what the activations carry, so the oracle need not be ahead; "
    "random directions should still need more of them"
)
_SHARES = "one class is rarer than all others together, so that always saying no is right of most texts"
_ACTIVATIONS = "a property of the language model and the sets, not of the SAE"
_FROM_DENSE = "the same order as of the balanced accuracy: the activations are the same for all"
_ABOVE = (
    "in a sound dictionary a concept is in few latents, so that choosing them pays more than with random directions"
)


def _order(k: int) -> dict[str, Any]:
    few = k <= FEW
    return {"expects": "oracle>trained>random" if few else "trained>random", "why": _CONCEPTS if few else _MANY}


def _of_k(k: int) -> tuple[Metric, ...]:
    said = "the one chosen latent" if k == 1 else f"the {k} chosen latents"
    mean = "mean over classes and sets"
    return (
        Metric(
            f"balanced_accuracy_k{k}",
            "higher",
            "fraction",
            main=k in MAIN,
            of=f"balanced_accuracy_k{k} / texts",
            help=f"Balanced accuracy of probes on {said}, {mean}; chance is .5.",
            **_order(k),
        ),
        Metric(
            f"accuracy_k{k}",
            "higher",
            "fraction",
            of=f"accuracy_k{k} / texts",
            why=_SHARES,
            help=f"Share of test texts that probes on {said} are right about, {mean}.",
        ),
        Metric(
            f"auc_k{k}",
            "higher",
            "fraction",
            of=f"auc_k{k} / texts",
            help=f"Area under the ROC of probes on {said}, {mean}; chance is .5.",
            **_order(k),
        ),
        Metric(
            f"above_random_k{k}",
            "higher",
            "fraction",
            of=f"(balanced_accuracy_k{k} - random_balanced_accuracy_k{k}) / texts",
            expects="trained>random",
            why=_ABOVE,
            help=f"Balanced accuracy on {said} minus that on as many random latents of the same SAE, same texts.",
        ),
        Metric(
            f"below_dense_k{k}",
            "lower",
            "fraction",
            of=f"(dense_balanced_accuracy - balanced_accuracy_k{k}) / texts",
            expects="trained>random",
            why=_FROM_DENSE,
            help=f"Balanced accuracy on the activations minus that on {said}, same texts.",
        ),
    )


METRICS = (
    *(metric for k in KS for metric in _of_k(k)),
    Metric(
        "dense_balanced_accuracy",
        "neither",
        "fraction",
        main=True,
        of="dense_balanced_accuracy / texts",
        why=_ACTIVATIONS,
        help="Balanced accuracy of probes on the activations themselves.",
    ),
    Metric(
        "dense_accuracy",
        "neither",
        "fraction",
        of="dense_accuracy / texts",
        why=_ACTIVATIONS,
        help="Share of test texts that probes on the activations are right about.",
    ),
    Metric(
        "dense_auc",
        "neither",
        "fraction",
        of="dense_auc / texts",
        why=_ACTIVATIONS,
        help="Area under the ROC of probes on the activations.",
    ),
)


def _of_family(k: int) -> tuple[Metric, ...]:
    return (
        Metric(
            f"mean_k{k}",
            "higher",
            "fraction",
            main=True,
            of=f"mean_k{k} / texts",
            why="SAEs of a family stand beside their controls one by one",
            help=f"Balanced accuracy with k = {k}, mean over the SAEs of the family.",
        ),
        Metric(
            f"widest_minus_narrowest_k{k}",
            "neither",
            "fraction",
            main=True,
            of=f"(widest_k{k} - narrowest_k{k}) / texts",
            why="wider is not better: a concept may be split over more latents (paper, A.9)",
            help=f"Balanced accuracy with k = {k} of the widest SAE minus that of the narrowest, same texts.",
        ),
    )


FAMILY_METRICS = tuple(metric for k in MAIN for metric in _of_family(k))
