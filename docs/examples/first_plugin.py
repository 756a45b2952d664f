from saebench_meta import hookimpl
from saebench_meta.task import Metric, Output, task

saebench_api = 1


@task("decoder_norm", version=1, metrics=[Metric("mean_norm", "neither", "1", main=True)], controls=[])
def decoder_norm(sae, ctx):
    """Mean length of the decoder directions."""
    return Output(estimates={"mean_norm": ctx.census(sae.W_dec.norm(dim=1).mean(), sae.d_sae)})


@hookimpl
def saebench_tasks():
    return [decoder_norm]
