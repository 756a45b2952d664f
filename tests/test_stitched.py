"""Stitched SAEs: every latent has the codes it had in its parent, in memory, moved, and from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saebench_meta.calibration import uncalibrated_note
from saebench_meta.errors import SaebenchError
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.stitching.stitched import ForeignPart, Stitched, stitch
from saebench_plugins import native

D = 6
SITE = Site(model="m", hook="blocks.1.hook_resid_pre")
KINDS: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu"},
    "jumprelu": {"activation": "jumprelu"},
    "topk": {"activation": "topk", "k": 3},
}
PAIRS = list(combinations_with_replacement(KINDS, 2))


def whole_numbers(seed: int, *shape: int) -> Tensor:
    """Weights whose products are exact in float32, so that the order of a sum cannot show."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


def parent(kind: str, *, seed: int = 0, d_sae: int = 10, **fields: Any) -> SAE:
    known: dict[str, Any] = {"name": f"{kind}-{seed}", "site": SITE, "d_in": D, "d_sae": d_sae}
    info = SAEInfo(**(known | KINDS[kind] | fields))
    W = [whole_numbers(10 * seed + i, *shape) for i, shape in enumerate([(D, d_sae), (d_sae,), (d_sae, D), (D,)])]
    W[2][:, 0] += 9  # no row of zeros
    threshold = whole_numbers(10 * seed + 5, d_sae).abs() if kind == "jumprelu" else None
    return SAE(W[0], W[1], W[2], W[3], info, threshold)


def tokens(n: int = 40, seed: int = 99) -> Tensor:
    return whole_numbers(seed, n, D)


def kept_codes(x: Tensor, *members: tuple[SAE, np.ndarray]) -> Tensor:
    """Codes of whole parents, masked: what the codes of a stitched SAE are by definition."""
    return torch.cat([sae.encode(x)[:, torch.from_numpy(chosen)] for sae, chosen in members], dim=1)


@st.composite
def choices(draw: st.DrawFn, d_sae: int = 10) -> np.ndarray:
    order = draw(st.permutations(range(d_sae)))
    return np.array(order[: draw(st.integers(1, d_sae))], dtype=np.int64)


# -- codes and reconstruction


@pytest.mark.parametrize(("one", "other"), PAIRS)
@given(first=choices(), second=choices(), again=choices())
def test_latents_keep_their_parents_codes_also_when_stitched_twice(
    one: str, other: str, first: np.ndarray, second: np.ndarray, again: np.ndarray
) -> None:
    a, b, x = parent(one), parent(other, seed=1), tokens()
    once = stitch([(a, first), (b, second)], name="once")
    assert torch.equal(once.encode(x), kept_codes(x, (a, first), (b, second)))
    chosen = again[again < once.d_sae]
    if len(chosen):
        c = parent("jumprelu", seed=2)
        twice = stitch([(once, chosen), (c, None)], name="twice")
        assert torch.equal(twice.encode(x), kept_codes(x, (once, chosen), (c, np.arange(10))))
        assert torch.equal(twice.W_dec, torch.cat([once.W_dec[torch.from_numpy(chosen)], c.W_dec]))


def test_reconstruction_is_that_of_equation_5() -> None:
    a, b, x = parent("topk"), parent("relu", seed=1), tokens()
    first, second = np.array([0, 2, 5]), np.array([1])
    made = stitch([(a, first), (b, second)], name="s")
    expected = 0.75 * a.b_dec.double() + 0.25 * b.b_dec.double()
    for sae, chosen in ((a, first), (b, second)):
        for j in chosen.tolist():
            expected = expected + sae.encode(x).double()[:, j : j + 1] * sae.W_dec.double()[j]
    torch.testing.assert_close(made.reconstruct(x).double(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("transform", ["center", "layer_norm", "norm_rescale"])
def test_an_input_transform_is_kept(transform: str) -> None:
    a, b = parent("topk", input_transform=transform), parent("jumprelu", seed=1, input_transform=transform)
    x, all_ = tokens().double() + 0.25, np.arange(10)
    a, b = a.to(dtype=torch.float64), b.to(dtype=torch.float64)
    made = stitch([(a, None), (b, None)], name="s")
    torch.testing.assert_close(made.encode(x), kept_codes(x, (a, all_), (b, all_)), rtol=0, atol=1e-12)
    only_a = stitch([(a, None), (b, all_[:0])], name="s")
    assert torch.equal(only_a.reconstruct(x), a.reconstruct(x))


@pytest.mark.parametrize("kind", KINDS)
def test_all_latents_of_one_sae_are_that_sae(kind: str) -> None:
    a, b, x = parent(kind), parent("topk", seed=1), tokens()
    made = stitch([(b, np.array([], dtype=int)), (a, np.arange(10))], name="s")
    assert (made.encoder, made.info.activation, made.info.k) == (None, a.info.activation, a.info.k)
    assert torch.equal(made.encode(x), a.encode(x)) and torch.equal(made.b_dec, a.b_dec)
    assert made.info.architecture == "stitched" and made.info.identity() == a.info.identity()


def test_latents_without_topk_make_a_plain_sae() -> None:
    relu, jump, topk = parent("relu"), parent("jumprelu", seed=1), parent("topk", seed=2)
    assert jump.threshold is not None
    plain = stitch([(relu, np.array([3])), (relu, np.array([4]))], name="s")
    assert (plain.encoder, plain.threshold, plain.info.activation) == (None, None, "relu")
    mixed = stitch([(relu, np.array([3])), (jump, np.array([7, 1]))], name="s")
    assert mixed.threshold is not None and mixed.encoder is None
    assert mixed.threshold.tolist() == [0.0, *jump.threshold[[7, 1]].tolist()]
    three = stitch([(topk, None), (jump, None)], name="s")
    assert isinstance(three.encoder, Stitched)
    without_topk = stitch([(three, np.arange(10, 20))], name="s")
    assert without_topk.encoder is None and torch.equal(without_topk.encode(tokens()), jump.encode(tokens()))


def test_a_top_k_parent_is_one_part_however_often_it_is_stitched() -> None:
    made = stitch([(parent("topk"), np.array([1, 3, 5])), (parent("relu", seed=1), None)], name="s")
    for _ in range(3):
        made = stitch([(made, np.arange(made.d_sae - 1)), (parent("relu", seed=2), np.array([0]))], name="s")
    assert isinstance(made.encoder, Stitched)
    topk, *others = made.encoder.linear_parts()
    assert (topk.n, topk.k) == (3, 3) and all(part.kept is None for part in others)


def test_a_given_bias_and_the_users_notes_are_taken() -> None:
    given_bias = torch.arange(D).double()
    a, b = parent("relu", folded=("decoder norms",)), parent("topk", seed=1, notes=("WARNING: odd", "quiet"))
    made = stitch([(a, np.array([1])), (b, np.array([2, 0]))], name="s", b_dec=given_bias, notes=("mine",))
    assert torch.equal(made.b_dec, given_bias.float())
    assert made.info.notes == ("1 of 10 latents of relu-0", "2 of 10 latents of topk-1", "WARNING: odd", "mine")
    assert (made.info.folded, made.info.site, made.info.d_sae, made.info.k) == (("decoder norms",), SITE, 3, None)


# -- parents with an encoder of their own


class Halved:
    """A foreign encoder that names no weights."""

    def __init__(self, W: Tensor) -> None:
        self.W = W

    def __call__(self, z: Tensor) -> Tensor:
        return torch.relu(z @ self.W) / 2

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> Halved:
        return Halved(self.W.to(dtype=dtype))


def test_a_foreign_encoder_is_carried_but_not_written(tmp_path: Path) -> None:
    a, b, x = parent("relu"), parent("topk", seed=1), tokens()
    foreign = replace(a, encoder=Halved(a.W_enc))
    chosen = np.array([4, 0])
    made = stitch([(foreign, chosen), (b, None)], name="s")
    assert torch.equal(made.encode(x), kept_codes(x, (foreign, chosen), (b, np.arange(10))))
    once_more = stitch([(made, np.array([1, 5]))], name="s")
    assert torch.equal(once_more.encode(x), made.encode(x)[:, [1, 5]])
    assert isinstance(once_more.encoder, Stitched) and isinstance(once_more.encoder.parts[0], ForeignPart)
    assert once_more.to(dtype=torch.float64).encode(x.double()).dtype == torch.float64
    with pytest.raises(SaebenchError, match=r"encoder of its own \(stitched\), or a part that has one"):
        native.save(made, tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="encoder of its own"):
        made.content_hash()


def test_a_foreign_encoder_that_cannot_be_moved_stays() -> None:
    foreign = replace(parent("relu"), encoder=lambda z: torch.relu(z)[:, :1].expand(-1, 10))
    assert foreign.to(dtype=torch.float64).encoder is foreign.encoder
    made = stitch([(foreign, np.array([2]))], name="s").to(dtype=torch.float64)
    assert torch.equal(made.encode(tokens().double()), torch.relu(tokens().double())[:, :1])


# -- moving, hashing, files


def topk_and_jumprelu() -> SAE:
    members: list[tuple[SAE, np.ndarray | None]] = [
        (parent("topk"), np.array([7, 2, 3])),
        (parent("jumprelu", seed=1), np.array([0, 9])),
        (parent("relu", seed=2, d_sae=4), None),
    ]
    return stitch(members, name="made")


def test_moving_casts_every_part_and_leaves_indices_alone() -> None:
    made = topk_and_jumprelu()
    wide = made.to(dtype=torch.float64)
    assert isinstance(wide.encoder, Stitched)
    kinds = {name: t.dtype for name, t in wide.encoder.tensors().items()}
    assert kinds.pop("part0.kept") == torch.int64 and set(kinds.values()) == {torch.float64}
    assert torch.equal(wide.encode(tokens().double()), made.encode(tokens()).double())


def changed(encoder: Stitched) -> Iterator[Stitched]:
    """Encoders that differ in one thing."""
    topk, jumprelu, relu = encoder.linear_parts()
    assert topk.kept is not None and jumprelu.threshold is not None
    yield Stitched((replace(topk, k=2), jumprelu, relu))
    yield Stitched((replace(topk, kept=topk.kept + 1), jumprelu, relu))
    yield Stitched((topk, replace(jumprelu, threshold=jumprelu.threshold + 1), relu))
    yield Stitched((topk, jumprelu, replace(relu, b_enc=relu.b_enc + 1)))
    yield Stitched((jumprelu, topk, relu))


def test_the_content_hash_follows_everything_that_codes_depend_on() -> None:
    made = topk_and_jumprelu()
    assert isinstance(made.encoder, Stitched)
    hashes = [replace(made, encoder=encoder).content_hash() for encoder in changed(made.encoder)]
    assert len({made.content_hash(), *hashes}) == 6
    assert topk_and_jumprelu().content_hash() == made.content_hash()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_file_gives_the_same_sae_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    made = topk_and_jumprelu().to(dtype=dtype)
    path = native.save(made, tmp_path / "a.safetensors")
    loaded = native.load(path, dtype=dtype)
    assert native.peek(path).info == loaded.info == made.info
    assert isinstance(loaded.encoder, Stitched) and isinstance(made.encoder, Stitched)
    assert loaded.encoder.describe() == made.encoder.describe()
    ours, theirs = loaded.encoder.tensors(), made.encoder.tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.equal(getattr(loaded, name), getattr(made, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    assert torch.equal(loaded.encode(tokens().to(dtype)), made.encode(tokens().to(dtype)))
    assert loaded.content_hash() == made.content_hash()
    assert native.save(loaded, tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


def test_a_plain_sae_is_still_written_as_version_1(tmp_path: Path) -> None:
    plain = stitch([(parent("relu"), np.array([1])), (parent("jumprelu", seed=1), None)], name="s")
    assert b'"version":"1"' in native.save(plain, tmp_path / "a.safetensors").read_bytes()
    assert b'"version":"2"' in native.save(topk_and_jumprelu(), tmp_path / "b.safetensors").read_bytes()


# -- what is refused

UNSETTLED = (uncalibrated_note(3, "the file has none"),)


@pytest.mark.parametrize(
    ("members", "error", "said"),
    [
        (lambda a: [(a, np.array([1, 1]))], ValueError, "chosen twice"),
        (lambda a: [(a, np.array([10]))], ValueError, "latents 0 to 9"),
        (lambda a: [(a, np.array([-1]))], ValueError, "latents 0 to 9"),
        (lambda a: [(a, np.array([[1]]))], ValueError, "latents 0 to 9"),
        (lambda a: [(a, np.array([], dtype=int))], SaebenchError, "would have no latents"),
        (lambda a: [(a, None), (parent("relu", input_transform="center"), None)], SaebenchError, "transform center"),
        (lambda a: [(a, None), (parent("jumprelu", k=3, notes=UNSETTLED), None)], SaebenchError, "no threshold yet"),
    ],
)
def test_what_cannot_be_stitched_is_refused(members: Callable[[SAE], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        stitch(members(parent("topk")), name="s")
