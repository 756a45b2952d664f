"""Worlds whose truth is known: which generating features are on is told with every activation or token.

A world drawn directly (`World`) gives activations that are sums of its features' directions; SAEs are trained on fresh
samples of it, with no language model. A world of text (`KnownTruth`) is a language model and a corpus, whose documents
say which features are on where. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from saebench_meta.errors import SaebenchError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.plugins import Registry

WORLD_HOOK = "x"
"""`SAEInfo.site.hook` of SAEs trained on a world; `site.model` is the world's name."""

Span = tuple[int, int, tuple[int, ...]]
"""Characters `start:end` of a document's text, and the numbers of the features that are on there."""


class World(Protocol):
    """Features with known directions, and activations drawn from them."""

    @property
    def name(self) -> str:
        """The reference, such as `toy:absorption-4`; also `SAEInfo.site.model` of SAEs trained on it."""
        ...

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features."""
        ...

    @property
    def directions(self) -> Float[Tensor, "features d_in"]:
        """True directions, unit rows, float32."""
        ...

    def sample(self, n: int, seed: int) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n features"]]:
        """`n` independent activations and the magnitudes of their features (0: off); the same for the same seed."""
        ...


@dataclass(frozen=True)
class WorldLoader:
    """How worlds of one scheme are made.

    Attributes:
        make: `ref -> World`, where `ref` is the part after `scheme:`; a `KeyError` says that there is no such world.
        names: references to show in messages, without the scheme.
        version: raise it when the same name would give other samples; part of the identity of SAEs trained on it.
        summary: one line for `saebench plugins`.
    """

    make: Callable[[str], World]
    names: tuple[str, ...] = ()
    version: int = 1
    summary: str = ""


@dataclass(frozen=True)
class KnownTruth:
    """What is known of a language model's world.

    Attributes:
        model: `SAEInfo.site.model` that it is about.
        oracles: hook -> reference of the supervised dictionary there; it is run as the control `oracle` beside every
            task on an SAE at that hook. Where it has as many latents as there are features, latent i is feature i.
        corpora: `DataIdentity.ref` of the corpora that it annotates.
        features: gives the names of the features.
        annotate: `(ref, *, split) -> spans of every document`, where `ref` is the part of a corpus reference after its
            scheme, and documents come in the order of the corpus's `DatasetLoader.documents`. A span is
            `(start, end, features)`: characters of the document's text, and the numbers of the features on there.
        version: raise it when the same text would be annotated otherwise; part of a record's id.
    """

    model: str
    oracles: Mapping[str, str]
    corpora: tuple[str, ...]
    features: Callable[[], Sequence[str]]
    annotate: Callable[..., Iterable[Sequence[Span]]]
    version: int = 1


def is_world(registry: Registry, ref: str) -> bool:
    """Whether a reference, such as an SAE's `site.model`, is one of a world."""
    scheme, colon, _ = ref.partition(":")
    return bool(colon) and scheme in registry.worlds


def open_world(registry: Registry, ref: str) -> World:
    """The world of a reference `scheme:name`.

    Raises:
        SaebenchError: not of that form, or nothing of that name.
    """
    scheme, colon, rest = ref.partition(":")
    if not colon:
        known = [f"{s}:{name}" for s, loader in registry.worlds.items() for name in loader.names]
        raise SaebenchError(f"'{ref}' is no world: give scheme:NAME{did_you_mean(ref, known)}")
    loader = registry.worlds[scheme]
    try:
        return loader.make(rest)
    except KeyError as e:
        raise UnknownNameError(f"'{scheme}' has no world '{rest}'{did_you_mean(rest, list(loader.names))}") from e


def world_version(registry: Registry, ref: str) -> int:
    """Version of the loader of a world."""
    return registry.worlds[ref.partition(":")[0]].version
