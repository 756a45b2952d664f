"""What the tasks `meta_sae`, `meta_sae_pair` and `meta_sae_family` report. No better direction anywhere."""

from __future__ import annotations

from saebench_meta.task import Metric

_ATOMIC = "a high share means that latents are made of common parts, so are less atomic; that is neither good nor bad"
_NULL = "a meta-SAE explains part of any rows; a null model says how much without structure"
_ABOVE = "common parts beyond mean and covariance can be what the language model computes with, or split latents"
_SPARSITY = "the sparsity is set in training"
_SIZE = "it depends on how many meta-latents there are and how long they were trained"
_ALIKE = "likeness of two dictionaries is a finding about both"

METRICS = (
    Metric(
        "variance_explained",
        "neither",
        "fraction",
        main=True,
        why=_ATOMIC,
        help="1 − Σ‖w − ŵ‖² / Σ‖w − w̄‖² over the unit decoder rows it was trained on, by the inference threshold.",
    ),
    Metric(
        "variance_explained_batch",
        "neither",
        "fraction",
        why=_ATOMIC,
        help="The same with the k·B largest activations of a batch of B rows, as in training.",
    ),
    Metric(
        "held_out",
        "neither",
        "fraction",
        main=True,
        why=_ATOMIC,
        help="Variance explained of held-out rows, by batch-top-k: at the sparsity of training.",
    ),
    Metric(
        "held_out_threshold",
        "neither",
        "fraction",
        why=_ATOMIC,
        help="Variance explained of held-out rows, by the threshold.",
    ),
    Metric(
        "held_out_gaussian",
        "neither",
        "fraction",
        why=_NULL,
        help="held_out of a meta-SAE trained alike on Gaussian rows of equal mean and covariance.",
    ),
    Metric(
        "held_out_permuted",
        "neither",
        "fraction",
        why=_NULL,
        help="held_out of one trained alike on rows with every coordinate permuted independently.",
    ),
    Metric(
        "above_gaussian",
        "neither",
        "fraction",
        main=True,
        why=_ABOVE,
        help="held_out minus held_out_gaussian: what common parts explain beyond mean and covariance.",
    ),
    Metric("above_permuted", "neither", "fraction", why=_ABOVE, help="held_out minus held_out_permuted."),
    Metric(
        "meta_latents_per_latent",
        "neither",
        "meta-latents",
        main=True,
        why=_SPARSITY,
        help="Active meta-latents of a latent by the threshold, mean over all latents.",
    ),
    Metric("dead_meta_latents", "neither", "fraction", why=_SIZE, help="Share of meta-latents active on no latent."),
    Metric(
        "within",
        "neither",
        "1",
        why=_SIZE,
        help="Largest cosine of a meta-latent with another, mean over those that are active on some latent.",
    ),
    Metric(
        "found_in_sae",
        "neither",
        "fraction",
        why=_ALIKE,
        help="Share of active meta-latents with a cosine above theta to a latent of the SAE.",
    ),
)

PAIR = (
    METRICS[0],
    METRICS[2],
    Metric(
        "held_out_replaced",
        "neither",
        "fraction",
        main=True,
        why=_ALIKE,
        help="held_out with decoder rows replaced by the reference's nearest latents and the encoder trained anew.",
    ),
    Metric(
        "held_out_pursuit_reference",
        "neither",
        "fraction",
        main=True,
        why=_ALIKE,
        help="Variance explained of held-out rows by orthogonal matching pursuit of k latents of the reference.",
    ),
    Metric(
        "held_out_pursuit",
        "neither",
        "fraction",
        why=_ALIKE,
        help="The same with k meta-latents: what the dictionary allows where the encoder is not the limit.",
    ),
    Metric(
        "found_in_reference",
        "neither",
        "fraction",
        why=_ALIKE,
        help="Share of active meta-latents with a cosine above theta to a latent of the reference.",
    ),
    Metric(
        "graph_overlap",
        "neither",
        "fraction",
        main=True,
        why=_ALIKE,
        help="Share of edges that the graph of shared meta-latents has in common with an equally dense one through "
        "the reference.",
    ),
    Metric(
        "graph_overlap_chance",
        "neither",
        "fraction",
        why=_NULL,
        help="What two graphs of these sizes share on average when latents are relabelled at random.",
    ),
)

FAMILY = (
    METRICS[0],
    METRICS[2],
    Metric(
        "per_latent_narrowest",
        "neither",
        "meta-latents",
        main=True,
        why=_SPARSITY,
        help="Active meta-latents of a latent of the narrowest SAE, mean.",
    ),
    Metric(
        "per_latent_widest", "neither", "meta-latents", main=True, why=_SPARSITY, help="The same of the widest SAE."
    ),
    Metric(
        "split_latents",
        "neither",
        "latents",
        why=_SIZE,
        help="Latents with a cosine above theta to two or more of the next wider SAE.",
    ),
    Metric(
        "split_kept",
        "neither",
        "fraction",
        main=True,
        why=_ALIKE,
        help="Share of a split latent's meta-latents that are active on one it split into, mean over such pairs.",
    ),
    Metric(
        "split_kept_chance",
        "neither",
        "fraction",
        why=_NULL,
        help="The same for a latent of the wider SAE drawn at random in place of the one it split into.",
    ),
    Metric(
        "split_added",
        "neither",
        "meta-latents",
        why=_SPARSITY,
        help="Meta-latents of the one it split into that the split latent has not, mean over such pairs.",
    ),
)
