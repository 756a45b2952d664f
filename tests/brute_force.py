"""Stitched SAEs the slow way: every one decoded in full, in float64, bias included."""

from __future__ import annotations

import numpy as np
import torch

from saebench_meta.stitching import PairSample


class BruteForce:
    """Σ‖x − x̂‖² of the stitched SAE with any latents, from dense codes in float64."""

    def __init__(self, sample: PairSample) -> None:
        pair = sample.pair
        self.s0, self.s1 = pair.reference, pair.sae
        self.f0 = torch.cat([c.old.dense() for c in sample]).double()
        self.f1 = torch.cat([c.new.dense() for c in sample]).double()
        self.x = torch.cat([c.x for c in sample]).double()
        scales = [torch.ones(len(c.x)) if c.scale is None else c.scale for c in sample]
        self.scale = torch.cat(scales).double()
        self.document = torch.cat([c.document for c in sample]).numpy()

    def errors(self, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        """Of every token."""
        a = len(old) / max(1, len(old) + len(new))
        if not len(old) + len(new):
            a = 1.0
        b = a * self.s0.b_dec.double() + (1 - a) * self.s1.b_dec.double()
        x_hat = self.f0[:, old] @ self.s0.W_dec.double()[old] + self.f1[:, new] @ self.s1.W_dec.double()[new]
        return (self.x - x_hat - self.scale[:, None] * b).square().sum(1).numpy()

    def sse(self, old: np.ndarray, new: np.ndarray) -> float:
        return float(self.errors(old, new).sum())

    def active(self, old: np.ndarray, new: np.ndarray) -> int:
        return int((self.f0[:, old] != 0).sum() + (self.f1[:, new] != 0).sum())

    @property
    def all_old(self) -> np.ndarray:
        return np.arange(self.s0.d_sae)
