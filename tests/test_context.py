"""What a task may rely on does not change unseen: the surface of `Context`, member by member."""

from __future__ import annotations

import inspect

import saebench_meta
from saebench_meta.context import Context
from saebench_meta.task_context import TaskContext

SURFACE = {
    "activations": "(self) -> 'Activations'",
    "batch_size": "property",
    "bootstrap": "(self, values: 'ArrayLike', statistic: 'Callable[..., ArrayLike] | None' = None) -> 'Estimate'",
    "census": "(self, value: 'float | None', n: 'int', *, n_unit: 'str' = 'latents', reason: 'str | None' = None)"
    " -> 'Estimate'",
    "cities": "(self) -> 'Cities'",
    "code_chunks": "(self, sae: 'SAE') -> 'Iterator[tuple[Chunk, Codes]]'",
    "codes": "(self, sae: 'SAE') -> 'Codes'",
    "control": "property",
    "device": "property",
    "generator": "(self, purpose: 'str') -> 'torch.Generator'",
    "judge": "(self) -> 'JudgeDesk'",
    "labelled": "(self, name: 'str') -> 'Labelled'",
    "labelled_sets": "property",
    "latents": "(self, n_latents: 'int') -> 'Sequence[int]'",
    "limit": "property",
    "lm": "(self) -> 'LanguageModel'",
    "memo": "(self, key: 'tuple[object, ...]', make: 'Callable[[], T]') -> 'T'",
    "groups": "(self, arrays: 'Sequence[ArrayLike]', statistic: 'Callable[..., float | None]', *, n: 'int', "
    "n_unit: 'str' = 'documents') -> 'Estimate'",
    "proportion": "(self, successes: 'int', trials: 'int', *, n_unit: 'str') -> 'Estimate'",
    "recipes": "property",
    "rng": "(self, purpose: 'str') -> 'np.random.Generator'",
    "sample": "(self) -> 'Sample'",
    "seed": "property",
    "train": (
        "(self, recipe: 'Recipe', rows: \"Float[Tensor, 'rows d_in'] | None\" = None, start: 'SAE | None' = None)"
        " -> 'SAE'"
    ),
    "track": "(self, items: 'Iterable[T]', what: 'str', total: 'int | None' = None) -> 'Iterable[T]'",
    "truth": "(self) -> 'Truth'",
    "warn": "(self, message: 'str') -> 'None'",
    "workdir": "property",
    "world": "(self, ref: 'str') -> 'World'",
}


def surface(of: type) -> dict[str, str]:
    members = {n: v for n, v in vars(of).items() if not n.startswith("_")}
    return {n: "property" if isinstance(v, property) else str(inspect.signature(v)) for n, v in members.items()}


def test_the_surface_a_task_sees_is_the_one_promised() -> None:
    """A change here breaks third parties: additions are fine (list them), anything else needs a new plugin API."""
    assert surface(Context) == SURFACE


def test_every_member_is_documented_and_implemented() -> None:
    given = surface(TaskContext)
    for name in SURFACE:
        assert inspect.getdoc(getattr(Context, name)), name
        assert name in given


def test_every_public_name_can_be_imported() -> None:
    for name in saebench_meta.__all__:
        assert getattr(saebench_meta, name) is not None
