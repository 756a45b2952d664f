"""Selection and sparse products against dense formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saebench_meta import seeds
from saebench_meta.training import kernels, selection
from saebench_meta.training.kernels import Encoded, decode, decode_both, encode
from saebench_meta.training.selection import above, top_of_batch, top_per_row
from saebench_meta.training.trainable import Processes

ONE = Processes()
BATCH, D_IN, D_SAE = 24, 7, 40


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeds.generator(seed, "kernels"), dtype=torch.float64)


def parameters() -> dict[str, Tensor]:
    made = {"W_enc": drawn(D_SAE, D_IN), "b_enc": drawn(D_SAE, seed=1), "b_dec": drawn(D_IN, seed=2)}
    return {name: t.requires_grad_() for name, t in {**made, "W_dec": drawn(D_SAE, D_IN, seed=3)}.items()}


def masked(pre: Tensor, places: Tensor) -> Tensor:
    """Bool mask of places in the flattened matrix."""
    return torch.zeros(pre.numel(), dtype=torch.bool).index_fill_(0, places, True).view(pre.shape)


CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda pre: top_per_row(pre, 3),
    "batch": lambda pre: top_of_batch(pre, 3, ONE),
    "few above": lambda pre: above(pre, 2.0, share=1.0),
    "many above": lambda pre: above(pre, 0.0, share=0.0),
    "above vector": lambda pre: above(pre, torch.linspace(-1, 3, D_SAE, dtype=pre.dtype), share=1.0),
    "none": lambda pre: above(pre, math.inf),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("shifted", [True, False])
def test_gradients_are_those_of_the_dense_formula(name: str, shifted: bool) -> None:
    x, p, weight = drawn(BATCH, D_IN, seed=4), parameters(), drawn(BATCH, D_IN, seed=5)
    b_dec = p["b_dec"] if shifted else None

    pre = (x - b_dec if b_dec is not None else x) @ p["W_enc"].T + p["b_enc"]
    chosen = CHOICES[name](pre.detach())
    f = pre * (chosen if chosen.dtype == torch.bool else masked(pre, chosen))
    expected = f.tanh() @ p["W_dec"] + p["b_dec"]
    wanted = torch.autograd.grad((expected * weight).sum() + f.square().sum(), list(p.values()))

    encoded = encode(x, p["W_enc"], p["b_enc"], b_dec, CHOICES[name])
    assert (encoded.support is None) == (name == "many above")
    found = decode(encoded.values.tanh(), encoded.support, p["W_dec"], p["b_dec"])
    got = torch.autograd.grad((found * weight).sum() + encoded.values.square().sum(), list(p.values()))

    torch.testing.assert_close(found, expected)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("k_aux", [2, 5, 100])
def test_dead_latents_decode_to_the_strongest_of_them(k_aux: int) -> None:
    x, p, weight = drawn(BATCH, D_IN, seed=4), parameters(), drawn(BATCH, D_IN, seed=5)
    dead = torch.arange(D_SAE) % 4 == 1

    pre = torch.relu((x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"])
    of_dead = pre.masked_fill(~dead, 0)
    kept = of_dead.detach().topk(min(k_aux, D_SAE), dim=1).indices
    aux = of_dead * torch.zeros_like(pre).scatter(1, kept, 1.0)
    main = pre * masked(pre, top_of_batch(pre.detach(), 3, ONE))
    loss = ((aux @ p["W_dec"]) * weight).sum() + (main @ p["W_dec"]).square().sum()
    wanted = torch.autograd.grad(loss, list(p.values()))

    encoded = encode(x, p["W_enc"], p["b_enc"], p["b_dec"], CHOICES["batch"], dead=dead, k_aux=k_aux)
    x_hat, e_hat = decode_both(torch.relu(encoded.values), encoded.support, p["W_dec"], None, encoded.aux)
    assert e_hat is not None
    torch.testing.assert_close(e_hat, aux @ p["W_dec"])
    got = torch.autograd.grad((e_hat * weight).sum() + x_hat.square().sum(), list(p.values()))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["rows", "batch", "few above"])
@pytest.mark.parametrize("k_aux", [0, 2, 100])
def test_fixed_sizes_give_the_same(name: str, k_aux: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done on a GPU, on the CPU: entries that are not positive, and no block of dead latents."""
    x, weight, dead = drawn(BATCH, D_IN, seed=4), drawn(BATCH, D_IN, seed=5), torch.arange(D_SAE) % 4 == 1
    found = []
    for fixed in (False, True):
        monkeypatch.setattr(selection, "sizes_fixed", lambda _, fixed=fixed: fixed)
        monkeypatch.setattr(kernels, "sizes_fixed", lambda _, fixed=fixed: fixed)
        p = parameters()
        with torch.no_grad():
            p["b_enc"] -= 3  # fewer positive ones than are asked for
        encoded = encode(x, p["W_enc"], p["b_enc"], p["b_dec"], CHOICES[name], dead=dead, k_aux=k_aux)
        f = torch.relu(encoded.values)
        x_hat, e_hat = decode_both(f, encoded.support, p["W_dec"], p["b_dec"], encoded.aux)
        loss = (x_hat * weight).sum()
        if name != "few above":  # elementwise choices are dense where sizes are fixed, and need no AuxK
            assert (e_hat is not None) == (k_aux > 0)
            loss = loss + (0 if e_hat is None else e_hat.square().sum())
        found.append((x_hat, encoded.fired(f).float(), *torch.autograd.grad(loss, list(p.values()))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_no_dead_latents_give_no_auxiliary_codes() -> None:
    x, p = drawn(BATCH, D_IN), parameters()
    none = torch.zeros(D_SAE, dtype=torch.bool)
    for dead, k_aux in ((none, 5), (~none, 0), (None, 5)):
        encoded = encode(x, p["W_enc"], p["b_enc"], p["b_dec"], CHOICES["batch"], dead=dead, k_aux=k_aux)
        assert encoded.aux is None


def test_split_rows_decode_to_parts_that_add_up() -> None:
    x, p, ends = drawn(BATCH, D_IN, seed=4), parameters(), [5, 6, 25, D_SAE]
    encoded = encode(x, p["W_enc"], p["b_enc"], p["b_dec"], CHOICES["batch"])
    assert encoded.support is not None
    parts = decode(encoded.values, encoded.support.split(ends), p["W_dec"]).view(BATCH, len(ends), D_IN)
    f = torch.zeros(BATCH, D_SAE, dtype=torch.float64)
    f[encoded.support.rows, encoded.support.cols] = encoded.values.detach()
    for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        torch.testing.assert_close(parts[:, i], f[:, start:end] @ p["W_dec"][start:end])


def test_bfloat16_decides_which_latents_and_nothing_else() -> None:
    p = {name: t.detach().float() for name, t in parameters().items()}
    x = drawn(BATCH, D_IN, seed=4).float()
    encoded = encode(x, p["W_enc"], p["b_enc"], p["b_dec"], CHOICES["batch"], bfloat16=True)
    assert encoded.support is not None
    pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    torch.testing.assert_close(encoded.values, pre[encoded.support.rows, encoded.support.cols])
    rough = ((x - p["b_dec"]).bfloat16() @ p["W_enc"].bfloat16().T).float() + p["b_enc"]
    assert rough[encoded.support.rows, encoded.support.cols].min() > rough.flatten().topk(6 * BATCH).values[-1]


def test_fired_and_per_latent_agree_sparse_and_dense() -> None:
    x, p = drawn(BATCH, D_IN), parameters()
    theta = torch.linspace(0, 1, D_SAE, dtype=torch.float64)

    def summed(encoded: Encoded) -> tuple[Tensor, Tensor]:
        f = torch.relu(encoded.values - encoded.per_latent(theta))
        return encoded.fired(f), f.sum()

    few, many = (
        encode(x, p["W_enc"], p["b_enc"], p["b_dec"], lambda pre, share=share: above(pre, 2.0, share=share))
        for share in (1.0, 0.0)
    )
    assert few.support is not None and many.support is None
    assert summed(few)[0].equal(summed(many)[0]) and 0 < summed(few)[0].sum() < D_SAE
    torch.testing.assert_close(summed(few)[1], summed(many)[1])


# -- which entries are kept


def exact(pre: Tensor, n: int) -> set[float]:
    """The values kept, by definition: the n largest of relu."""
    kept = torch.relu(pre).flatten().topk(min(n, pre.numel())).values
    return set(kept[kept > 0].tolist())


@pytest.mark.parametrize("rows, d_sae, k", [(64, 96, 4), (512, 1024, 8), (300, 2048, 1), (2, 3, 2)])
def test_batch_top_k_is_that_of_topk(rows: int, d_sae: int, k: int) -> None:
    pre = torch.randn(rows, d_sae, generator=seeds.generator(0, rows))
    places = top_of_batch(pre, k, ONE)
    assert places.equal(places.sort().values)
    assert set(pre.flatten()[places].tolist()) == exact(pre, k * rows)
    assert len(places) == min(k * rows, int((pre > 0).sum()))


def degenerate() -> dict[str, Tensor]:
    g = seeds.generator(0, "degenerate")
    few = -torch.rand(512, 1024, generator=g)
    few.view(-1)[torch.randperm(few.numel(), generator=g)[:100]] += 2
    one_row = torch.zeros(512, 1024)
    one_row[7] = torch.rand(1024, generator=g) + 1
    return {
        "few positives": few,
        "no positives": few.clamp_max(0),
        "zeros": torch.zeros(512, 1024),
        "one row": one_row,
        "one column, unseen by a sample": torch.zeros(512, 1024).index_fill_(1, torch.tensor([3]), 1.0),
        "all equal": torch.ones(512, 1024),
        "constant rows": torch.rand(512, 1, generator=g).expand(512, 1024).contiguous(),
        "ties": torch.randint(-3, 4, (512, 1024), generator=g).float(),
    }


@pytest.mark.parametrize("name", degenerate())
def test_batch_top_k_of_odd_batches(name: str) -> None:
    pre, k = degenerate()[name], 4
    places = top_of_batch(pre, k, ONE)
    values = pre.flatten()[places]
    assert len(places) == len(places.unique()) == min(k * 512, int((pre > 0).sum()))
    assert values.sort().values.equal(torch.relu(pre).flatten().topk(len(places)).values.flip(0))


def test_equal_values_are_kept_from_the_lowest_place() -> None:
    pre = torch.tensor([[1.0, 2.0, 1.0, 1.0], [1.0, 1.0, 2.0, 1.0]])
    assert top_of_batch(pre, 2, ONE).tolist() == [0, 1, 2, 6]


@given(st.data())
def test_two_processes_keep_what_one_would(data: Any) -> None:
    kinds = st.sampled_from(["normal", "ties", "negative", "uneven"])
    kind, k, seed = data.draw(kinds), data.draw(st.integers(1, 5)), data.draw(st.integers(0, 999))
    pre = torch.randn(12, 10, generator=seeds.generator(seed, kind))
    if kind == "ties":
        pre = pre.round()
    elif kind == "negative":
        pre = pre - 2
    elif kind == "uneven":
        pre[6:] *= 0.01
    halves = pre[:6].contiguous(), pre[6:].contiguous()
    together = together_of(halves, k)
    assert together.equal(top_of_batch(pre, k, ONE))


def together_of(halves: tuple[Tensor, Tensor], k: int) -> Tensor:
    """What two processes keep, in one matrix. Each is first run to hear what it sends the other."""
    board: list[Any] = [None, None]
    barrier = Barrier(2, timeout=20)

    class Beside(Processes):
        def __init__(self, rank: int) -> None:
            self.count, self.rank = 2, rank

        def gather(self, x: Tensor) -> Tensor:
            board[self.rank] = x.clone()
            barrier.wait()
            both = torch.stack(list(board))
            barrier.wait()
            return both

        def sum(self, x: Tensor) -> Tensor:
            return self.gather(x).sum(0)

        def max(self, x: Tensor) -> Tensor:
            return self.gather(x).amax(0)

    kept: list[Any] = [None, None]

    def work(rank: int) -> None:
        kept[rank] = top_of_batch(halves[rank], k, Beside(rank))

    threads = [Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return torch.cat([kept[0], kept[1] + halves[0].numel()])
