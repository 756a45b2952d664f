"""Write one log line for every task that ends."""

import logging

from saebench_meta import hookimpl
from saebench_meta.events import UnitFinished

saebench_api = 1
log = logging.getLogger(__name__)


@hookimpl
def saebench_event(event):
    if isinstance(event, UnitFinished):
        log.info("%s on %s: %s after %.1f s", event.task, event.subject, event.status, event.seconds)
