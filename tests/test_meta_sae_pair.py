"""meta_sae_pair and meta_sae_family: matching pursuit, graphs and splits by hand, and what they write."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from fakes import tied_sae
from meta_sae_samples import PARAMETERS, family, own, pair, random_sae, recipe, with_decoder
from scipy import sparse
from sklearn.linear_model import orthogonal_mp

from saebench_meta import measure
from saebench_meta.codes import Codes
from saebench_meta.errors import SaebenchError
from saebench_meta.sae import SAE
from saebench_meta.task import Family, Output, Pair
from saebench_meta.training.trainable import unit_rows as normalised
from saebench_tasks.meta_sae import build, meta_sae_family, meta_sae_pair
from saebench_tasks.meta_sae import family as families
from saebench_tasks.meta_sae import pair as pairs
from saebench_tasks.meta_sae.graph import overlap
from saebench_tasks.meta_sae.omp import orthogonal_matching_pursuit
from saebench_tasks.meta_sae.rows import Rows, unit_rows


def run(sae: SAE, reference: SAE, **parameters: Any) -> Output:
    chosen = own({**PARAMETERS, **parameters}, "held_out", "threshold", "latents")
    output = meta_sae_pair(Pair(sae, reference), pair([sae, reference], **parameters), **chosen)
    measure.check_output(meta_sae_pair, output)
    return output


# -- matching pursuit


@pytest.mark.parametrize("k", [1, 3, 7])
def test_matching_pursuit_is_that_of_scikit_learn(k: int) -> None:
    g = torch.Generator().manual_seed(k)
    x, atoms = torch.randn(60, 12, generator=g).double(), normalised(torch.randn(30, 12, generator=g)).double()
    found = orthogonal_matching_pursuit(x, atoms, k)
    codes = orthogonal_mp(atoms.T.numpy(), x.T.numpy(), n_nonzero_coefs=k)
    np.testing.assert_allclose(found.numpy(), (atoms.T.numpy() @ codes).T, atol=1e-9)
    assert ((codes != 0).sum(0) == k).all()


def test_matching_pursuit_leaves_nothing_of_a_sum_of_orthogonal_atoms_and_stops_at_the_dictionary() -> None:
    atoms = torch.eye(4)[:3]
    x = torch.tensor([[2.0, -3.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    assert orthogonal_matching_pursuit(x, atoms, 2)[0].tolist() == [2, -3, 0, 0]
    assert orthogonal_matching_pursuit(x, atoms, 2)[1].tolist() == [0, 2, 3, 0]
    assert orthogonal_matching_pursuit(x, atoms, 9).tolist() == [[2, -3, 0, 0], [1, 2, 3, 0], [0, 0, 0, 0]]


def test_matching_pursuit_with_an_atom_twice_or_of_zeros() -> None:
    atoms = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.6, 0.8]])
    x = torch.tensor([[3.0, 4.0], [5.0, 0.0]])
    torch.testing.assert_close(orthogonal_matching_pursuit(x, atoms, 4), x.double(), rtol=0, atol=1e-12)


# -- graphs


def test_graphs_by_hand() -> None:
    """Latents 0–1–2 share meta-latent 0, 3–4 meta-latent 1: four edges. Of the reference, latent 0 is near to 0, 1, 3
    and latent 1 to 2 and 4: four edges with cosines above .3, of which 0–1 is the only one of both."""
    active = sparse.csr_array(np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1.0]]))
    cosine = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.6], [0.7, 0.1], [0.0, 0.5], [0.1, 0.2]])
    found = overlap(active, cosine)
    assert (found.nodes, found.meta_edges, found.cosine_edges, found.both) == (6, 4, 4, 1)
    assert found.tau == 0.3 and found.share == 1 / 4
    # Each of 4 edges is one of the other graph's 4 with probability 4 / 15.
    assert found.chance == pytest.approx(4 / 15)


def test_chance_is_the_mean_over_all_ways_to_relabel() -> None:
    active = sparse.csr_array(np.array([[1, 0.0], [1, 0], [1, 1], [0, 1], [0, 0]]))
    cosine = np.array([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7], [0.0, 0.6], [0.5, 0.0]])
    shares = [overlap(active, cosine[list(order)]).share for order in itertools.permutations(range(5))]
    assert overlap(active, cosine).chance == pytest.approx(np.mean([s for s in shares if s is not None]))


def test_the_graph_nearest_in_density_is_taken_whatever_the_density() -> None:
    """Against all thresholds tried one by one."""
    rng = np.random.default_rng(0)
    cosine = rng.random((14, 3)).round(2)

    def edges(tau: float) -> set[tuple[int, int]]:
        near = cosine > tau
        return {(i, j) for i, j in itertools.combinations(range(14), 2) if (near[i] & near[j]).any()}

    sizes = [len(edges(tau)) for tau in [-1, *np.unique(cosine)]]
    for members in range(0, 15, 2):
        active = sparse.csr_array((np.arange(14) < members)[:, None].astype(float))
        found = overlap(active, cosine)
        asked = members * (members - 1) // 2
        assert found.meta_edges == asked
        assert abs(found.cosine_edges - asked) == min(abs(size - asked) for size in sizes)
        shared = edges(found.tau) & set(itertools.combinations(range(members), 2))
        assert (found.both, found.cosine_edges) == (len(shared), len(edges(found.tau)))


def test_latents_that_share_nothing_have_no_overlap() -> None:
    found = overlap(sparse.csr_array(np.eye(3)), np.array([[0.9], [0.8], [0.1]]))
    assert found.meta_edges == found.cosine_edges == 0 and found.share is None and found.chance is None


# -- a smaller SAE in place of the meta-SAE


def test_rows_are_replaced_by_the_nearest_of_the_reference_and_the_encoder_stays() -> None:
    meta = with_decoder(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]))
    reference = with_decoder(torch.tensor([[0.0, 3.0], [-1.0, 0.0], [4.0, 0.0]]))
    made, distinct = pairs.replaced(meta, reference)
    assert made.W_dec.tolist() == [[1, 0], [1, 0], [0, 1]] and distinct == 2
    assert torch.equal(made.W_enc, meta.W_enc) and torch.equal(made.b_dec, meta.b_dec)


def test_a_reference_that_has_the_atoms_does_as_well_as_the_atoms() -> None:
    """Rows are sums of 2 of 8 orthogonal atoms with a mean of zero; the reference has the atoms, both ways."""
    g = torch.Generator().manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(8, 8, generator=g)).Q
    two = torch.rand(200, 8, generator=g).topk(2).indices
    signs = torch.randint(0, 2, (200, 2), generator=g) * 2.0 - 1
    sae = with_decoder(torch.zeros(200, 8).scatter_(1, two, signs) @ atoms)
    sae = with_decoder(torch.cat([sae.W_dec, -sae.W_dec]))
    reference = with_decoder(torch.cat([atoms, -atoms]))
    output = run(sae, reference, width=20, k=2, steps=150, lr=5e-3, held_out=0.25)
    found = output.estimates
    assert found["held_out_pursuit_reference"].value == pytest.approx(1, abs=0.01)
    table = output.tables["comparisons"].data.set_index("by")
    assert list(table["latents"]) == [20, 20, 20, 16] and table["distinct"].iloc[1] <= 16
    assert table["held_out"].iloc[1] == found["held_out_replaced"].value
    assert table["held_out"].iloc[0] == found["held_out"].value
    assert table["held_out"].iloc[2] == found["held_out_pursuit"].value >= table["held_out"].iloc[0]  # type: ignore[operator]


def test_the_pursuit_of_held_out_rows_is_about_the_mean_of_those_trained_on() -> None:
    """By scikit-learn, for the whole score."""
    sae, reference = random_sae(60, 6, 1), random_sae(10, 6, 2)
    sae = with_decoder(sae.W_dec + 0.5)
    output = run(sae, reference, k=3, held_out=0.3)
    rows = unit_rows([sae], 0.3, 0)
    x, atoms = rows.x.double().numpy(), normalised(reference.W_dec).double().numpy()
    seen, held_out = x[~rows.held_out], x[rows.held_out]
    codes = orthogonal_mp(atoms.T, (held_out - seen.mean(0)).T, n_nonzero_coefs=3)
    error = ((held_out - seen.mean(0) - codes.T @ atoms) ** 2).sum()
    expected = 1 - error / ((held_out - held_out.mean(0)) ** 2).sum()
    assert output.estimates["held_out_pursuit_reference"].value == pytest.approx(expected, abs=1e-6)


def test_all_that_a_pair_writes() -> None:
    sae, reference = random_sae(60, 6, 1, name="wide"), random_sae(12, 6, 2, name="narrow")
    output = run(sae, reference, width=10, latents=(3,), threshold=0.5)
    graphs = output.tables["graphs"].data.iloc[0]
    found = output.estimates
    assert found["graph_overlap"].value == 2 * graphs["edges_both"] / (graphs["edges_meta"] + graphs["edges_reference"])
    expected = 2 * graphs["edges_meta"] * graphs["edges_reference"] / (60 * 59 / 2)
    assert found["graph_overlap_chance"].value == expected / (graphs["edges_meta"] + graphs["edges_reference"])
    table = output.tables["examples"].data
    assert list(table["latent"].unique()) == [3] and len(table) >= 5
    nearest = (normalised(reference.W_dec) @ normalised(sae.W_dec)[3]).topk(5)
    assert table["reference_latent"].to_list()[:5] == nearest.indices.tolist()
    assert table["reference_cosine"].to_list()[:5] == pytest.approx(nearest.values.tolist(), abs=1e-6)
    assert set(output.tables["max_cosines"].data.columns) == {
        "quantile",
        "meta-latents with the reference",
        "meta-latents with each other",
        "the reference's latents with each other",
        "this SAE's latents with the reference",
    }


def test_the_meta_sae_of_a_pair_is_the_one_of_the_sae_alone() -> None:
    infos = (random_sae(60, 6).info, random_sae(12, 6).info)
    alone = build.trains(infos[:1], PARAMETERS, recipe)[0]
    first, encoder = build.trains_pair(infos, PARAMETERS, recipe)
    assert first.digest() == alone.digest()
    assert (encoder.architecture, encoder.d_sae, encoder.tokens) == ("encoder", first.d_sae, first.tokens)
    assert encoder.hyperparameters["k"] == 4 and encoder.lr == first.lr and encoder.batch_size == first.batch_size


def test_saes_of_different_spaces_are_refused() -> None:
    other = tied_sae(6, 8, input_transform="center")
    with pytest.raises(SaebenchError, match=r"meta_sae_pair: .* differ in input transform"):
        run(random_sae(40, 6), other)
    with pytest.raises(SaebenchError, match=r"meta_sae_pair\.threshold is -1"):
        run(random_sae(40, 6), random_sae(8, 6), threshold=-1)


# -- a family


def of_axes(active: list[list[int]], n_meta: int) -> Codes:
    f = torch.zeros(len(active), n_meta)
    for row, columns in enumerate(active):
        f[row, columns] = 1
    return Codes.from_dense(f)


def split_family() -> tuple[list[SAE], Rows, Codes]:
    """Latent 0 of the narrow SAE splits into 0 and 1 of the wide one, its latent 1 has one twin there, 2 is zero."""
    narrow = with_decoder(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), name="narrow")
    wide = with_decoder(
        torch.tensor([[4.0, 0.0, 3.0], [4.0, 0.0, -3.0], [0.0, 2.0, 0.0], [0.0, 0.0, -1.0]]), name="wide"
    )
    rows = unit_rows([narrow, wide], 0.0, 0)
    return [narrow, wide], rows, of_axes([[0, 1], [2], [0, 3, 4], [0, 1, 3], [2], []], 5)


def test_splits_by_hand() -> None:
    saes, rows, codes = split_family()
    found = families.splits(saes, rows, codes, theta=0.7)
    assert found[["member", "latent", "wider", "split_into"]].to_numpy().tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]
    assert found["cosine"].to_list() == pytest.approx([0.8, 0.8])
    # {0, 1} is in {0, 3, 4} with one, in {0, 1, 3} with both; what they have beside is 3 and 4, and 3.
    assert found["kept"].to_list() == [0.5, 1] and found["added"].to_list() == [2, 1]
    # Of the wide SAE's four latents meta-latent 0 is on two and meta-latent 1 on one: (2/4 + 1/4) / 2 are shared.
    assert found["chance"].to_list() == [0.375, 0.375]
    assert families.splits(saes, rows, codes, theta=0.8).empty
    estimates = families.of_splits(found, pair([saes[1]]))  # type: ignore[arg-type]
    values = {name: estimate.value for name, estimate in estimates.items()}
    assert values == {"split_latents": 1, "split_kept": 0.75, "split_kept_chance": 0.375, "split_added": 1.5}


def test_meta_latents_by_width_by_hand() -> None:
    saes, rows, codes = split_family()
    found = families.per_width(saes, rows, codes, ["a", "b"])
    assert found.to_numpy().tolist() == [["a", 3, 1.5, 0, 0.5], ["b", 4, 7 / 4, 0.25, 0.25]]


def test_a_latent_splits_into_those_of_one_sae_of_the_next_width() -> None:
    """Not into one latent of each of two, nor into those of an SAE two steps wider."""
    one = with_decoder(torch.tensor([[1.0, 0.0]]))
    twins = [with_decoder(torch.tensor([[1.0, 0.1], [-1.0, 0.0]])), with_decoder(torch.tensor([[1.0, 0.2], [0.0, 1]]))]
    wide = with_decoder(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1]]))
    saes = [one, *twins, wide]
    rows = unit_rows(saes, 0.0, 0)
    codes = of_axes([[0]] * 8, 1)
    found = families.splits(saes, rows, codes, 0.9)
    assert found[["member", "latent", "wider"]].drop_duplicates().to_numpy().tolist() == [[1, 0, 3], [2, 0, 3]]


def family_run(saes: list[SAE], **parameters: Any) -> Output:
    chosen = own({**PARAMETERS, **parameters}, "held_out", "threshold")
    output = meta_sae_family(Family(tuple(saes)), family(saes, **parameters), **chosen)
    measure.check_output(meta_sae_family, output)
    return output


def test_all_that_a_family_writes_whatever_order_it_is_given_in() -> None:
    narrow, wide = random_sae(12, 6, 1, name="narrow"), random_sae(40, 6, 2, name="wide")
    wide.W_dec[0], wide.W_dec[1] = narrow.W_dec[4] + 0.01, 2 * narrow.W_dec[4]
    output, other = (family_run(saes, width=12, k=2, threshold=0.98) for saes in ([narrow, wide], [wide, narrow]))
    assert {n: e.value for n, e in output.estimates.items()} == {n: e.value for n, e in other.estimates.items()}
    pairs_found = output.tables["decomposition"].data
    assert list(pairs_found.columns) == ["sae", "latent", "meta_latent", "activation"]
    assert output.saes["meta_sae_family"].d_sae == 12 and "of 52 latents" in output.notes[0]
    widths = output.tables["by_width"].data
    for name, latents, metric in (("narrow (1)", 12, "per_latent_narrowest"), ("wide (2)", 40, "per_latent_widest")):
        mean = (pairs_found["sae"] == name).sum() / latents
        assert output.estimates[metric].value == pytest.approx(mean)
        assert widths.set_index("sae").loc[name, "meta_latents"] == pytest.approx(mean)
    splits = output.tables["splits"].data
    assert splits[["sae", "latent", "wider", "split_into"]].to_numpy().tolist() == [
        ["narrow (1)", 4, "wide (2)", 0],
        ["narrow (1)", 4, "wide (2)", 1],
    ]
    of = pairs_found[(pairs_found["sae"] == "narrow (1)") & (pairs_found["latent"] == 4)]
    assert splits["meta_latents"][0] == " ".join(map(str, of["meta_latent"]))
    assert output.estimates["split_latents"].value == 1


def test_a_family_without_splits_says_so() -> None:
    output = family_run([random_sae(8, 6, 1), random_sae(9, 6, 2)], threshold=1.0)
    assert output.estimates["split_latents"].value == 0 and output.tables["splits"].data.empty
    assert output.estimates["split_kept"].reason == "no latent splits at this threshold"
