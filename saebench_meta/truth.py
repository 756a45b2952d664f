"""How well an SAE's latents match the features of a world whose truth is known: the yardstick for every other metric.

Latents and features are matched one to one on the F1 of firing. *Matched F1* is the mean over the features that occur;
a feature without a latent counts as 0. Directions are matched apart from that, on |cosine| (MCC, arXiv 2505.20254).

The interval of matched F1 comes from resampling documents, or blocks of independent samples of a world, with the match
as it was found on all of them: it leaves out that another sample might match another latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy import sparse

from saebench_meta import seeds, stats
from saebench_meta.matching import Firing, Matched, cosines, firing, matched_f1, mcc, uniqueness
from saebench_meta.stats import Estimate

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.activations import Activations
    from saebench_meta.annotation import Truth
    from saebench_meta.codes import Codes
    from saebench_meta.sae import SAE
    from saebench_meta.worlds import World

TOKENS = 65_536
"""Samples drawn from a world unless said otherwise."""
MIN_COUNT = 10
"""Tokens that a feature must be on in, so that its F1 says something."""
GOOD = 0.9
"""F1 from which a feature counts as found."""
BLOCKS = 500
"""Parts that are resampled, at most: more documents are put together in groups, samples of a world in blocks."""
BATCH = 8192


@dataclass(frozen=True)
class FeatureScore:
    """One feature with its latent; None where it has none, or is on in too few tokens to be matched.

    Attributes:
        frequency: share of tokens on which it is on.
        cosine: of its latent's decoder row with its direction.
    """

    feature: str
    frequency: float
    latent: int | None
    precision: float | None
    recall: float | None
    f1: float | None
    cosine: float | None


@dataclass(frozen=True)
class TruthScores:
    """How well an SAE matches the truth.

    Attributes:
        tokens: tokens, or samples of a world.
        l0: active latents a token.
        dead: latents that never fire on them.
        features: that are matched; the others are on in too few tokens, and counted in `rare`.
        f1: matched F1: mean over these features, with an interval.
        precision, recall: means over the matched pairs; None without one.
        found: share of the features with an F1 of `GOOD` or more.
        mcc: of decoder rows with the directions; None where they are not known.
        mcc_encoder: likewise of the columns of `W_enc`; only for worlds drawn directly.
        uniqueness: distinct features nearest to decoder rows, as a share of the latents.
        per_feature: a line a feature, in the world's order.
    """

    tokens: int
    l0: float
    dead: int
    features: int
    rare: int
    f1: Estimate
    precision: float | None
    recall: float | None
    found: float | None
    mcc: float | None
    mcc_encoder: float | None
    uniqueness: float | None
    per_feature: tuple[FeatureScore, ...]


def truth_scores(
    sae: SAE,
    source: World | tuple[Activations, Truth],
    *,
    tokens: int = TOKENS,
    seed: int = 0,
    directions: Float[Tensor, "features d_in"] | None = None,
    min_count: int = MIN_COUNT,
) -> TruthScores:
    """Scores of an SAE on a world drawn directly, or on activations whose truth is known.

    Args:
        source: the world, or activations with the truth of the same tokens.
        tokens: samples drawn; only for a world.
        seed: of the samples, and of the bootstrap.
        directions: the features' directions in the SAE's input space, such as an oracle's decoder rows; a world's own
            for a world.
        min_count: features on in fewer tokens are not matched.

    Raises:
        ValueError: activations and truth differ in tokens.
    """
    if isinstance(source, tuple):
        seen, names, encoder = _on_activations(sae, *source), source[1].features, None
    else:
        seen, names, directions = _on_world(sae, source, tokens, seed), source.features, source.directions
        encoder = None if sae.encoder is not None else mcc(sae.W_enc.T, directions)
    table = firing(seen.fired, seen.on)
    matched = matched_f1(table, min_count)
    cosine = None if directions is None else cosines(sae.W_dec, directions)
    pairs = (matched.latents, matched.features)
    counted = int(matched.counted.sum())
    return TruthScores(
        tokens=table.n,
        l0=float(table.latents.sum() / max(1, table.n)),
        dead=int((table.latents == 0).sum()),
        features=counted,
        rare=len(matched.counted) - counted,
        f1=_interval(seen, matched, seed),
        precision=_mean(table.precision[pairs]),
        recall=_mean(table.recall[pairs]),
        found=_mean(matched.f1[matched.counted] >= GOOD),
        mcc=None if directions is None else mcc(sae.W_dec, directions),
        mcc_encoder=encoder,
        uniqueness=None if cosine is None else uniqueness(cosine),
        per_feature=_per_feature(names, table, matched, cosine),
    )


def random_on_world(sae: SAE, world: World, tokens: int = TOKENS, seed: int = 0) -> SAE:
    """The control `random` of an SAE on a world: random directions, its shape, and its L0 on these samples."""
    from saebench_meta.controls import random_sae

    drawn = _Drawn(world, tokens, seed)
    active = sum(sae.encode_sparse(chunk.x.to(sae.device, sae.dtype)).nnz for chunk in drawn)
    return random_sae(sae, cast("Activations", drawn), active / tokens, seeds.generator(seed, "truth", "random"))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


# -- the SAE and the truth on the same tokens


@dataclass(frozen=True, eq=False)
class _Seen:
    """What fired and what was on.

    Attributes:
        fired: (tokens, latents).
        on: (tokens, features).
        part: number of the part (document, group of documents, block) that each token is resampled with.
        unit: what the parts are.
    """

    fired: sparse.csr_array
    on: sparse.csr_array
    part: Int[np.ndarray, " tokens"]
    unit: str


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Samples of a world as chunks, the same at every reading."""

    world: World
    n_tokens: int
    seed: int

    def __iter__(self) -> Iterator[_Samples]:
        for number, start in enumerate(range(0, self.n_tokens, BATCH)):
            n = min(BATCH, self.n_tokens - start)
            yield _Samples(*self.world.sample(n, seeds.derive(self.seed, "truth", number)))


@dataclass(frozen=True, eq=False)
class _Samples:
    x: Float[Tensor, "n d_in"]
    magnitudes: Float[Tensor, "n features"]


def _on_world(sae: SAE, world: World, tokens: int, seed: int) -> _Seen:
    fired, on = [], []
    for chunk in _Drawn(world, tokens, seed):
        fired.append(_fired(sae.encode_sparse(chunk.x.to(sae.device, sae.dtype))))
        on.append(sparse.csr_array(chunk.magnitudes.cpu().numpy() != 0))
    blocks = min(BLOCKS, tokens)
    return _Seen(_stacked(fired), _stacked(on), np.arange(tokens) * blocks // tokens, "blocks of samples")


def _on_activations(sae: SAE, activations: Activations, truth: Truth) -> _Seen:
    if activations.n_tokens != truth.on.shape[0]:
        raise ValueError(f"activations of {activations.n_tokens} tokens, the truth of {truth.on.shape[0]}")
    fired = [_fired(sae.encode_sparse(chunk.x.to(sae.device, sae.dtype))) for chunk in activations]
    document, n = activations.documents.cpu().numpy(), activations.n_docs
    if n <= BLOCKS:
        return _Seen(_stacked(fired), truth.on, document, "documents")
    return _Seen(_stacked(fired), truth.on, document * BLOCKS // n, "groups of documents")


def _fired(codes: Codes) -> sparse.csr_array:
    codes = codes.to("cpu")
    ones = np.ones(codes.nnz, dtype=bool)
    return sparse.csr_array((ones, codes.cols.numpy(), codes.indptr.numpy()), shape=(codes.n_tokens, codes.n_latents))


def _stacked(parts: list[sparse.csr_array]) -> sparse.csr_array:
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


# -- what comes of it


def _interval(seen: _Seen, matched: Matched, seed: int) -> Estimate:
    """Matched F1 with a bootstrap interval over the parts, the pairs as they are."""
    counted = int(matched.counted.sum())
    if not counted:
        return Estimate(None, 0, seen.unit, "bootstrap", reason="no feature is on in enough tokens")
    n = int(seen.part.max()) + 1
    both, either = _sums(seen, matched, n)

    def mean_f1(parts: np.ndarray, axis: int = -1) -> np.ndarray:  # noqa: ARG001 - always the last
        rows = parts.reshape(-1, parts.shape[-1]).astype(np.int64)
        at = rows + n * np.arange(len(rows))[:, None]
        weights = np.bincount(at.ravel(), minlength=n * len(rows)).reshape(-1, n).astype(np.float64)
        top, bottom = 2 * (weights @ both), weights @ either
        f1 = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        return np.asarray(f1.sum(axis=1) / counted).reshape(parts.shape[:-1])

    estimate = stats.bootstrap(np.arange(n), seeds.rng(seed, "truth", "bootstrap"), mean_f1)
    return replace(estimate, n_unit=seen.unit)


def _sums(
    seen: _Seen, matched: Matched, n: int
) -> tuple[Float[np.ndarray, "parts pairs"], Float[np.ndarray, "parts pairs"]]:
    """Of every part and matched pair: tokens on which both fire and are on; the sum of those of each."""
    tokens = len(seen.part)
    within = sparse.csr_array((np.ones(tokens), (seen.part, np.arange(tokens))), shape=(n, tokens))
    fired, on = (x.astype(np.float64) for x in (seen.fired[:, matched.latents], seen.on[:, matched.features]))
    return (within @ fired.multiply(on)).toarray(), (within @ (fired + on)).toarray()


def _per_feature(
    names: tuple[str, ...], table: Firing, matched: Matched, cosine: Float[np.ndarray, "latents features"] | None
) -> tuple[FeatureScore, ...]:
    latent_of = dict(zip(matched.features.tolist(), matched.latents.tolist(), strict=True))
    if cosine is not None and cosine.shape[1] != len(names):
        cosine = None  # which direction belongs to which feature is not known then

    def score(feature: int, name: str) -> FeatureScore:
        frequency = float(table.features[feature] / max(1, table.n))
        latent = latent_of.get(feature)
        f1 = float(matched.f1[feature]) if matched.counted[feature] else None
        if latent is None:
            return FeatureScore(name, frequency, None, None, None, f1, None)
        at = (latent, feature)
        precision, recall = float(table.precision[at]), float(table.recall[at])
        return FeatureScore(
            name, frequency, latent, precision, recall, f1, None if cosine is None else float(cosine[at])
        )

    return tuple(score(i, name) for i, name in enumerate(names))


def as_row(scores: TruthScores) -> dict[str, Any]:
    """The scores as plain data, without those of the single features."""
    row = {name: getattr(scores, name) for name in scores.__dataclass_fields__ if name not in ("f1", "per_feature")}
    f1 = scores.f1
    return {**row, "f1": f1.value, "f1_low": f1.ci_low, "f1_high": f1.ci_high, "f1_n": f1.n, "f1_n_unit": f1.n_unit}
