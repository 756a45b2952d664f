"""A need of one's own: a task with `needs=["middle_layer"]` runs only on SAEs of `blocks.1` and up."""

import re

from saebench_meta import hookimpl

saebench_api = 1


def middle_layer(info):
    layer = re.match(r"blocks\.(\d+)\.", info.site.hook)
    if layer and int(layer[1]) > 0:
        return None
    return f"it needs an SAE above the first block, and {info.name} reads {info.site.hook}"


@hookimpl
def saebench_needs():
    return {"middle_layer": middle_layer}
