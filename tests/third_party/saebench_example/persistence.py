"""How long latents stay on, and how close decoder directions lie to each other."""

from saebench_meta import hookimpl
from saebench_meta.task import Metric, Output, task

saebench_api = 1


def transitions(codes, document, n_docs, gap=1):
    """Per document: activations that are still there `gap` tokens on, and all that could be.

    Args:
        codes: `Codes` of (tokens, latents).
        document: (tokens,) number of the document of each token.
    """
    import torch

    goes_on = torch.zeros(codes.n_tokens, dtype=torch.bool, device=codes.device)
    goes_on[:-gap] = document[gap:] == document[:-gap]
    place = codes.rows * codes.n_latents + codes.cols
    counted = goes_on[codes.rows]
    still_on = counted & torch.isin(place + gap * codes.n_latents, place)
    return tuple(torch.bincount(document[codes.rows[m]], minlength=n_docs) for m in (still_on, counted))


def crowding(W_dec):
    """Mean over latents of the largest cosine with another latent; the largest of all is that with itself."""
    import torch

    unit = torch.nn.functional.normalize(W_dec, dim=1)
    return torch.cat([(block @ unit.T).topk(2).values[:, 1] for block in unit.split(1024)]).mean()


@task(
    "persistence",
    version=1,
    needs=["activations"],
    metrics=[
        Metric("kept", better="neither", unit="fraction", main=True, of="stayed / active", help="Still active later."),
        Metric("crowding", better="neither", unit="cosine", help="Mean largest cosine with another latent."),
    ],
)
def persistence(sae, ctx, *, gap: int = 1):
    """Share of active latents that are still active `gap` tokens later in the same document."""
    sample, codes = ctx.sample(), ctx.codes(sae)
    document = sample.document[sample.evaluated].long().to(codes.device)
    stayed, active = transitions(codes, document, sample.n_docs, gap)
    return Output(
        documents={"document": sample.document_ids, "stayed": stayed.cpu(), "active": active.cpu()},
        estimates={"crowding": ctx.census(crowding(sae.W_dec), n=sae.d_sae)},
    )


@hookimpl
def saebench_tasks():
    return [persistence]
