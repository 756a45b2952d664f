"""A task on a pair, with a parameter: `--sae A --reference B --tasks bias_distance -P bias_distance.p=1`."""

from saebench_meta import hookimpl
from saebench_meta.task import Metric, Output, task

saebench_api = 1


@task(
    "bias_distance",
    version=1,
    subject="pair",
    needs=["reference"],
    controls=[],
    metrics=[Metric("distance", better="neither", unit="1", main=True, help="Length of b_dec(S1) - b_dec(S0).")],
)
def bias_distance(pair, ctx, *, p: float = 2.0):
    """Distance between the decoder biases of an SAE and its reference."""
    distance = (pair.sae.b_dec - pair.reference.b_dec).norm(p=p)
    return Output(estimates={"distance": ctx.census(distance, n=pair.sae.d_in, n_unit="coordinates")})


@hookimpl
def saebench_tasks():
    return [bias_distance]
