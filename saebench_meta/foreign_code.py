"""No code that comes with a language model is run, whatever the model's config asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from saebench_meta.errors import SaebenchError

IMPORTERS = ("get_class_from_dynamic_module", "get_class_in_module")
"""Of transformers: every import of a file that lies beside weights goes through these."""


class ForeignCodeError(SaebenchError):
    """A model cannot be opened without code of its own."""


@contextmanager
def refused(ref: str) -> Iterator[None]:
    """While this lasts, files beside the weights cannot be imported.

    `trust_remote_code=False` is not enough: for some architectures TransformerLens imports the model's own file, to
    patch it, without asking for that flag; and which architecture it is, the model's config says.

    Raises:
        ForeignCodeError: the model wanted code of its own, whether or not it would have opened without.
    """
    from transformers import dynamic_module_utils

    asked: list[str] = []

    def refuse(name: str, *_: Any, **__: Any) -> None:
        asked.append(name)
        raise ImportError(f"'{name}' would be code that comes with the model")

    kept = {name: getattr(dynamic_module_utils, name) for name in IMPORTERS}
    for name in IMPORTERS:
        setattr(dynamic_module_utils, name, refuse)
    try:
        yield
    except SaebenchError as e:
        if asked or "custom code" in str(e):
            raise _wants_code(ref) from e
        raise
    finally:
        for name, importer in kept.items():
            setattr(dynamic_module_utils, name, importer)
    if asked:
        raise _wants_code(ref)


def _wants_code(ref: str) -> ForeignCodeError:
    return ForeignCodeError(
        f"model '{ref}' cannot be opened without code of its own, which is never run here: give one of an "
        "architecture that transformers itself has"
    )
