"""What each latent of an SAE stands for in a world whose truth is known. Thresholds were fixed before any run.

With decoder directions w_j, feature directions d_i, and codes f on a sample of the world:

- latent j *fires* on a token where f_j > .2 max f_j. A direction that is right to within training noise responds a
  little to everything, the more so in superposition (at ±.05 by .1 of its maximum), so that f_j > 0 says little.
- its *feature* is the one of largest cos(w_j, d_i); its *part* of another feature k is cos(w_j, d_k) less what the
  feature itself would have, cos(w_j, d_i) cos(d_i, d_k). It *holds* its feature and all of which it has a part ≥ .2.
- it is *clean* where the cosine with its feature is ≥ .95 and all parts of others lie within ±.2.
- a firing pattern *agrees* with a set of tokens where its F1 is ≥ .95.
- feature p is a *parent* of c where p is on in every token that c is on in, and in others too.

Each latent is the first of these that fits:

    dead         max f_j ‖w_j‖ < .1 of the magnitude of the weakest feature
    duplicate    clean, and another live latent is clean for the same feature
    absorbed     clean; silent (on all but .05) where its feature is on and a latent fires that holds it too, which is
                 at least on .01 of the feature's tokens; on all other tokens it agrees with its feature
    exact        clean, and agrees with its feature
    inexact      clean, and does not
    absorbing    cos(w_j, Σ m_i d_i) ≥ .95 over the two or more features it holds (m_i mean magnitudes), agrees with the
                 tokens on which all of them are on, and one that is another's parent has an absorbed latent
    combination  the same without the last condition
    mixed        everything else: a direction with parts of several features, or of none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from saebench_meta.matching import Firing, cosines, firing, one_to_one

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from saebench_meta.sae import SAE
    from saebench_meta.worlds import World

Kind = Literal["dead", "duplicate", "absorbed", "exact", "inexact", "absorbing", "combination", "mixed"]
KINDS: tuple[Kind, ...] = get_args(Kind)

RULES = 1
"""Version of what is said above; raise it with every change, so that kept scores are made anew."""
FIRES = 0.2
"""Share of its largest activation above which a latent fires."""
DEAD = 0.1
"""Share of the weakest feature's magnitude below which everything a latent adds is nothing."""
CLEAN = 0.95
"""Cosine from which on a direction is a feature's, or a sum's."""
PART = 0.2
"""Cosine from which on a direction holds a part of another feature."""
AGREES = 0.95
"""F1 from which on a latent fires as it should; an absorbed latent is silent on this share of what is taken from it."""
RARE = 0.01
"""Share of a feature's tokens below which what is taken from a latent is not counted."""
TOKENS = 2**14
BINS = 40
WEAKEST = 0.05
"""Share of its largest activation from which on a peak counts; weak ones are what several peaks are about."""
LEAST = 0.005
"""Share of a latent's activations from there on that a bin of its histogram must have to belong to a peak."""


@dataclass(frozen=True, eq=False)
class Scores:
    """An SAE held against a world.

    Attributes:
        kinds: of each latent.
        decoder, encoder: cosines of decoder rows, and of encoder columns within the features' span, with the
            features' directions. What an encoder has outside the span is where it started: no activation is there.
        between: cosines of decoder rows with each other.
        parts: what each decoder row has of each feature beside its own (its own: the cosine); see above.
        firing: counts of latents against features, latents firing as defined above.
        parents: [c, p]: whether p is a parent of c.
        peaks: of each latent's activation histogram; 0 for dead ones.
        fvu: Σ‖x − x_hat‖² / Σ‖x − x̄‖² on the sample.
        l0: latents above 0 per token.
    """

    kinds: tuple[Kind, ...]
    decoder: Float[np.ndarray, "latents features"]
    encoder: Float[np.ndarray, "latents features"]
    between: Float[np.ndarray, "latents latents"]
    parts: Float[np.ndarray, "latents features"]
    firing: Firing
    parents: Bool[np.ndarray, "features features"]
    peaks: tuple[int, ...]
    fvu: float
    l0: float

    @cached_property
    def live(self) -> Int[np.ndarray, " live"]:
        """Latents that are not dead."""
        return np.flatnonzero([kind != "dead" for kind in self.kinds])

    @cached_property
    def feature(self) -> Int[np.ndarray, " latents"]:
        """Each latent's feature."""
        return np.array(self.decoder.argmax(1))

    def count(self, *kinds: Kind) -> int:
        """Latents of these kinds."""
        return sum(kind in kinds for kind in self.kinds)

    def features_of(self, *kinds: Kind) -> frozenset[int]:
        """Features of the latents of these kinds."""
        return frozenset(int(i) for i, kind in zip(self.feature, self.kinds, strict=True) if kind in kinds)

    def holds(self, latent: int) -> frozenset[int]:
        """Its feature, and those of which it has a part."""
        return frozenset(int(i) for i in np.flatnonzero(self.parts[latent] >= PART)) | {int(self.feature[latent])}

    def matched(self, side: Literal["decoder", "encoder"] = "decoder") -> Matched:
        """Live latents and features paired one to one on the cosine of decoder or encoder (Hungarian method)."""
        cosine = self.decoder if side == "decoder" else self.encoder
        rows, features = one_to_one(cosine[self.live])
        pairs = (self.live[rows], features)
        table = self.firing
        return Matched(*pairs, cosine[pairs], table.precision[pairs], table.recall[pairs], table.f1[pairs])

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON; cosines to six places."""
        arrays = {n: getattr(self, n).round(6).tolist() for n in ("decoder", "encoder", "between", "parts")}
        t = self.firing
        counts = {"both": t.both.tolist(), "latents": t.latents.tolist(), "features": t.features.tolist(), "n": t.n}
        rest = {"parents": self.parents.tolist(), "peaks": list(self.peaks), "fvu": self.fvu, "l0": self.l0}
        return {"kinds": list(self.kinds), **arrays, "firing": counts, **rest}

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Scores:
        """What `to_json` gave."""
        made: dict[str, Any] = {n: np.array(held[n]) for n in ("decoder", "encoder", "between", "parts", "parents")}
        made |= {n: tuple(held[n]) for n in ("kinds", "peaks")}
        counts: dict[str, Any] = {n: np.array(v) if n != "n" else v for n, v in held["firing"].items()}
        return cls(**made, firing=Firing(**counts), fvu=held["fvu"], l0=held["l0"])


@dataclass(frozen=True, eq=False)
class Matched:
    """Latents paired with features: cosine of each pair, and how the latent fires as a detector of the feature."""

    latents: Int[np.ndarray, " pairs"]
    features: Int[np.ndarray, " pairs"]
    cosine: Float[np.ndarray, " pairs"]
    precision: Float[np.ndarray, " pairs"]
    recall: Float[np.ndarray, " pairs"]
    f1: Float[np.ndarray, " pairs"]


@torch.no_grad()
def score(sae: SAE, world: World, *, tokens: int = TOKENS, seed: int = 0) -> Scores:
    """An SAE held against a sample of a world.

    Args:
        sae: trained on the world's activations; without a per-token input transform.
        tokens: size of the sample.
        seed: of the sample.
    """
    x, magnitudes = world.sample(tokens, seed)
    f = sae.encode(x.to(sae.device, sae.dtype))
    error = (x - sae.decode(f).to(x)).square().sum()
    codes = f.double().cpu().numpy()
    seen = see(codes, magnitudes.double().numpy(), sae.W_dec, world.directions)
    return Scores(
        kinds=kinds(seen),
        decoder=seen.decoder,
        encoder=cosines(within(sae.W_enc.T, world.directions), world.directions),
        between=cosines(sae.W_dec, sae.W_dec),
        parts=seen.parts,
        firing=firing(seen.fired, seen.on),
        parents=seen.parents,
        peaks=tuple(peaks(f_j) if live else 0 for f_j, live in zip(codes.T, seen.live, strict=True)),
        fvu=float(error / (x - x.mean(0)).square().sum()),
        l0=float((f > 0).sum() / tokens),
    )


def within(rows: Float[torch.Tensor, "n d_in"], directions: Float[torch.Tensor, "features d_in"]) -> torch.Tensor:
    """Rows projected on the span of the directions, in float64."""
    d = directions.double().to(rows.device)
    projected: torch.Tensor = rows.double() @ torch.linalg.pinv(d) @ d
    return projected


@dataclass(frozen=True, eq=False)
class Seen:
    """What kinds are judged by; words as above.

    Attributes:
        decoder: cosines of decoder rows with the features' directions.
        features: cosines of these with each other.
        magnitude: mean of each feature's over the tokens on which it is on.
        on: which features are, in each token.
        fired: which latents do.
        live: which latents are not dead.
        feature: each latent's.
        parts: what each decoder row has of each feature; of its own, the cosine.
        holds, clean: of each latent; False for dead ones.
        parents: [c, p]: whether p is a parent of c.
    """

    decoder: Float[np.ndarray, "latents features"]
    features: Float[np.ndarray, "features features"]
    magnitude: Float[np.ndarray, " features"]
    on: Bool[np.ndarray, "tokens features"]
    fired: Bool[np.ndarray, "tokens latents"]
    live: Bool[np.ndarray, " latents"]
    feature: Int[np.ndarray, " latents"]
    parts: Float[np.ndarray, "latents features"]
    holds: Bool[np.ndarray, "latents features"]
    clean: Bool[np.ndarray, " latents"]
    parents: Bool[np.ndarray, "features features"]


def see(
    f: Float[np.ndarray, "tokens latents"],
    magnitudes: Float[np.ndarray, "tokens features"],
    W_dec: Float[torch.Tensor, "latents d_in"],
    directions: Float[torch.Tensor, "features d_in"],
) -> Seen:
    """What an SAE's codes and decoder are in terms of a world's features.

    Args:
        magnitudes: of the features in each token; 0 where off.
    """
    decoder, features = cosines(W_dec, directions), cosines(directions, directions)
    on, rows = magnitudes > 0, np.arange(len(decoder))
    count = on.sum(0)
    magnitude = magnitudes.sum(0) / count.clip(1)
    largest = f.max(0)
    live = largest * W_dec.double().norm(dim=1).cpu().numpy() >= DEAD * magnitude.min(where=count > 0, initial=np.inf)
    feature = decoder.argmax(1)
    own = np.arange(len(features)) == feature[:, None]
    parts = np.where(own, decoder, decoder - decoder[rows, feature][:, None] * features[feature])
    both = on.T.astype(np.float64) @ on
    return Seen(
        decoder=decoder,
        features=features,
        magnitude=magnitude,
        on=on,
        fired=(f > FIRES * largest) & live,
        live=live,
        feature=feature,
        parts=parts,
        holds=(own | (parts >= PART)) & live[:, None],
        clean=live & (decoder.max(1) >= CLEAN) & (np.abs(parts).max(1, where=~own, initial=0) < PART),
        parents=(both == count[:, None]) & (count[:, None] > 0) & (count > count[:, None]),
    )


def kinds(seen: Seen) -> tuple[Kind, ...]:
    """The kind of each latent."""
    n = len(seen.decoder)
    absorbed = [bool(seen.clean[j]) and is_absorbed(seen, j) for j in range(n)]
    absorbed_features = frozenset(int(seen.feature[j]) for j in range(n) if absorbed[j])
    return tuple(_kind(seen, j, absorbed[j], absorbed_features) for j in range(n))


def _kind(seen: Seen, j: int, absorbed: bool, absorbed_features: frozenset[int]) -> Kind:
    if not seen.live[j]:
        return "dead"
    if not seen.clean[j]:
        return _unclean(seen, j, absorbed_features)
    if (seen.clean & (seen.feature == seen.feature[j])).sum() > 1:
        return "duplicate"
    if absorbed:
        return "absorbed"
    return "exact" if f1(seen.fired[:, j], seen.on[:, seen.feature[j]]) >= AGREES else "inexact"


def _unclean(seen: Seen, j: int, absorbed: frozenset[int]) -> Kind:
    held = np.flatnonzero(seen.holds[j])
    together = np.all(seen.on[:, held], axis=1)
    if len(held) < 2 or _cosine_with_sum(seen, j, held) < CLEAN or f1(seen.fired[:, j], together) < AGREES:
        return "mixed"
    taken = [p for p in held if p in absorbed and seen.parents[held, p].any()]
    return "absorbing" if taken else "combination"


def is_absorbed(seen: Seen, j: int) -> bool:
    """Whether latent j is silent just where another latent fires that holds its feature."""
    feature = seen.feature[j]
    rivals = seen.holds[:, feature].copy()
    rivals[j] = False
    taken = seen.fired[:, rivals].any(1)
    on, fired = seen.on[:, feature], seen.fired[:, j]
    lost = on & taken
    if not lost.any() or lost.sum() < RARE * on.sum():
        return False
    return bool(fired[lost].mean() <= 1 - AGREES and f1(fired[~taken], on[~taken]) >= AGREES)


def _cosine_with_sum(seen: Seen, j: int, held: Int[np.ndarray, " held"]) -> float:
    """cos(w_j, Σ m_i d_i) over the features held."""
    m = seen.magnitude[held]
    norm = np.sqrt(m @ seen.features[np.ix_(held, held)] @ m)
    return float(seen.decoder[j, held] @ m / norm)


def f1(a: Bool[np.ndarray, " tokens"], b: Bool[np.ndarray, " tokens"]) -> float:
    """F1 of one set of tokens against another; 0 where both are empty."""
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def peaks(f: Float[np.ndarray, " tokens"]) -> int:
    """Runs of bins that are not empty, in a histogram of a latent's activations above .05 of the largest.

    Forty bins from 0; a bin is empty with less than .005 of these activations. Meant for constant magnitudes, where
    activations lie at a few levels; the task has a test for other ones.
    """
    counted = f[f > WEAKEST * f.max()]
    full = np.histogram(counted, BINS, (0, f.max()))[0] >= LEAST * len(counted)
    return int((full & ~np.append(False, full[:-1])).sum())


@torch.no_grad()
def responses(
    sae: SAE, world: World, sets: Sequence[Sequence[int]], *, tokens: int = TOKENS
) -> Float[np.ndarray, "sets latents"]:
    """Codes of inputs in which just the features of each set are on, at their mean magnitudes: the post's table."""
    magnitudes = world.sample(tokens, 0)[1]
    mean = magnitudes.sum(0) / (magnitudes > 0).sum(0).clamp_min(1)
    chosen = torch.zeros(len(sets), len(mean))
    for row, features in zip(chosen, sets, strict=True):
        row[list(features)] = mean[list(features)]
    x = chosen @ world.directions
    return sae.encode(x.to(sae.device, sae.dtype)).double().cpu().numpy()


def singles_and_pairs(parents: Bool[np.ndarray, "features features"]) -> list[tuple[int, ...]]:
    """Sets of features for `responses`: each feature, and each two, with all of their parents."""
    n = len(parents)
    wanted = [(i,) for i in range(n)] + [(i, k) for i in range(n) for k in range(i + 1, n)]
    closed = ({*chosen, *(int(p) for i in chosen for p in np.flatnonzero(parents[i]))} for chosen in wanted)
    return list(dict.fromkeys(tuple(sorted(chosen)) for chosen in closed))
