"""Cities as latents, and the edits that should turn one into another.

With codes f and decoder directions w_i in the SAE's input space, and t_i the mean code of latent i at a city's own
position on its selection prompts:

    latents of a city    the m with the largest  t_i(city) − mean over other cities of t_i
    latent swap          f_i ← 0 for the source's, f_i ← t_i(target) for the target's
    direction of a city  u = Σ t_i w_i over its latents, norm 1   (m = 1: the unit decoder row)
    meta-latent edit     c = Σ f_i w_i over the source's latents  ←  ‖c‖ r / ‖r‖,   r = Σ h_k v_k + b

where v_k and b are the meta-SAE's decoder, and h has, of the meta-latents of either city, those of one subset: with the
source's value where the source has it, the target's else. Only what changes of the reconstruction is added to the
activation, so that the SAE's error stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import normalize

from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.sae import SAE
    from saebench_tasks.city_steering.prompts import Asked, Prompt

POSITIONS = ("all", "after", "city")
"""Where the latent swap is made: all tokens but BOS, as in the post; the city and all after it; the city alone."""


@dataclass(frozen=True, eq=False)
class CityLatents:
    """The latents of every city.

    Attributes:
        latents: (cities, m), the most contrasting first.
        contrast: of each, its mean code on the city minus that on the others, times the norm of its decoder row.
        codes: (cities, m) t.
        directions: (cities, d_in) u; zero where none of a city's latents is ever on.
    """

    latents: Int[Tensor, "cities m"]
    contrast: Float[Tensor, "cities m"]
    codes: Float[Tensor, "cities m"]
    directions: Float[Tensor, "cities d_in"]


def city_latents(sae: SAE, asked: Asked, m: int) -> CityLatents:
    """Find them on the selection prompts.

    Raises:
        SaebenchError: m is no number of latents of this SAE.
    """
    if not 0 < m <= sae.d_sae:
        raise SaebenchError(f"city_steering.latents is {m}: give a number from 1 to {sae.d_sae}")
    mean = torch.zeros(len(asked.cities), sae.d_sae, device=sae.device)
    for city in range(len(asked.cities)):
        at = [x[p.at] for p, x in asked.of(city, "selection", range(len(asked.attributes)))]
        mean[city] = sae.encode(torch.stack(at).to(sae.W_dec)).mean(0)
    norm = sae.W_dec.norm(dim=1)  # a latent whose codes are halved and decoder row doubled is the same latent
    contrast = (mean - (mean.sum(0) - mean) / (len(mean) - 1)) * norm
    top = contrast.topk(m, dim=1)
    codes = mean.gather(1, top.indices)
    directions = normalize(torch.einsum("cm,cmd->cd", codes, sae.W_dec[top.indices]), dim=1)
    return CityLatents(top.indices, top.values, codes, directions)


@dataclass(frozen=True, eq=False)
class Subsets:
    """Subsets of the meta-latents of two cities, and the directions rebuilt from them.

    Attributes:
        union: numbers of the meta-latents of either city.
        source: which of the union are the source's own.
        target: which are the target's.
        on: (subsets, union). The first two are the source's own and the target's own.
        directions: (subsets, d_in), norm 1.
        of: how many subsets there are; more than these where they were sampled.
    """

    union: Int[np.ndarray, " union"]
    source: Bool[np.ndarray, " union"]
    target: Bool[np.ndarray, " union"]
    on: Bool[np.ndarray, "subsets union"]
    directions: Float[Tensor, "subsets d_in"]
    of: int


def subsets(
    meta: SAE, source: Float[Tensor, " d_in"], target: Float[Tensor, " d_in"], most: int, rng: np.random.Generator
) -> Subsets:
    """Every subset of the union of two directions' meta-latents, or a sample of them.

    Args:
        most: sample so many where there are more.
    """
    g = meta.encode(torch.stack([source, target]).to(meta.W_dec))
    union = (g > 0).any(0).nonzero().squeeze(1)
    g_source, g_target = g[:, union]
    own, other = (g_source > 0).cpu().numpy(), (g_target > 0).cpu().numpy()
    on = choose(own, other, most, rng)
    values = torch.where(g_source > 0, g_source, g_target)
    rebuilt = torch.from_numpy(on).to(values) * values @ meta.W_dec[union] + meta.b_dec
    return Subsets(union.cpu().numpy(), own, other, on, normalize(rebuilt, dim=1), 2 ** len(union))


def choose(
    own: Bool[np.ndarray, " union"], other: Bool[np.ndarray, " union"], most: int, rng: np.random.Generator
) -> Bool[np.ndarray, "subsets union"]:
    """Subsets, all different: the source's own and the target's own first, then all others or a sample of them."""
    n = len(own)
    every = 2**n <= most
    rest = (np.arange(2**n)[:, None] >> np.arange(n)) % 2 == 1 if every else rng.random((2 * most, n)) < 0.5
    rows = dict.fromkeys(map(tuple, np.concatenate([[own, other], rest]).tolist()))
    kept = list(rows)[:most]
    return np.array(kept, dtype=bool).reshape(len(kept), n)


class Editor:
    """Edits of one pair of cities.

    Args:
        positions: one of `POSITIONS`.
    """

    def __init__(self, sae: SAE, found: CityLatents, source: int, target: int, positions: str) -> None:
        self.sae, self.positions = sae, positions
        self.source, self.target = found.latents[source], found.latents[target]
        self.codes = found.codes[target]

    def swap(self, x: Float[Tensor, "t d_in"], prompt: Prompt) -> Float[Tensor, "1 t d_in"]:
        """The latent swap on a prompt."""
        return (x + self._where(prompt, len(x)).to(x.device) * self.swap_delta(x))[None]

    def rebuilt(
        self, x: Float[Tensor, "t d_in"], prompt: Prompt, directions: Float[Tensor, "edits d_in"]
    ) -> Float[Tensor, "edits t d_in"]:
        """The source's part of the reconstruction turned to each of some directions."""
        return x + self._where(prompt, len(x)).to(x.device) * self.rebuilt_delta(x, directions)

    def swap_delta(self, x: Float[Tensor, "t d_in"]) -> Float[Tensor, "t d_in"]:
        """What the swap adds to activations, wherever they stand."""
        f, scale = self._codes(x)
        wanted = f.clone()
        wanted[:, self.source] = 0
        wanted[:, self.target] = self.codes.to(wanted)
        return ((wanted - f) @ self.sae.W_dec * scale).to(x)

    def rebuilt_delta(
        self, x: Float[Tensor, "t d_in"], directions: Float[Tensor, "edits d_in"]
    ) -> Float[Tensor, "edits t d_in"]:
        """What each new direction adds to activations; nothing where none of the source's latents is on."""
        f, scale = self._codes(x)
        c = f[:, self.source] @ self.sae.W_dec[self.source]
        turned: Tensor = c.norm(dim=1, keepdim=True) * directions[:, None].to(c) - c
        return (turned * scale).to(x)

    def on(self, x: Float[Tensor, "t d_in"]) -> Bool[Tensor, " t"]:
        """Where one of the source's latents is on."""
        return (self._codes(x)[0][:, self.source] > 0).any(1)

    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, and the factor from the SAE's input space back to activations."""
        z = x.to(self.sae.W_dec)
        scale = self.sae.transform(z)[1].scale
        return self.sae.encode(z), z.new_ones(1) if scale is None else scale

    def _where(self, prompt: Prompt, n: int) -> Bool[Tensor, "n 1"]:
        """Positions edited; BOS never is."""
        at = torch.arange(n)
        first = prompt.at if self.positions == "after" else int(prompt.bos)
        where: Tensor = at == prompt.at if self.positions == "city" else at >= first
        return where[:, None]
