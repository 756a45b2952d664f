"""Several processes that train together, as `torchrun --nproc-per-node N -m …` starts them, all on one machine.

`torchrun` says in the environment who is who. Without it a run is one process and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    import torch

    from saebench_meta.training.trainable import Processes

WAIT = timedelta(hours=6)
"""How long processes wait for one another: the first may be waiting for another run's lock."""


@contextmanager
def init_processes(device: str = "cpu") -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that `torchrun` started with this one: over nccl on GPUs, gloo elsewhere.

    Args:
        device: `cuda` gives each process a GPU of its own.

    Yields:
        the processes, and this one's device.

    Raises:
        SaebenchError: no such kind of device, or more processes than GPUs.
    """
    import torch

    from saebench_meta.training.trainable import Processes

    try:
        place = torch.device(device)
    except RuntimeError as e:
        raise SaebenchError(f"--device {device} cannot be used here: {str(e).splitlines()[0]}") from e
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Processes(), place
        return
    if place.type == "cuda":
        number = int(os.environ["LOCAL_RANK"])
        if number >= torch.cuda.device_count():
            raise SaebenchError(
                f"process {number + 1} has no GPU, there are {torch.cuda.device_count()}: lower --nproc-per-node"
            )
        place = torch.device("cuda", number)
        torch.cuda.set_device(place)
    torch.distributed.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=WAIT)
    yield Processes(), place
    # Not after an error: the others may be waiting for this process, and torchrun ends them.
    torch.distributed.destroy_process_group()
