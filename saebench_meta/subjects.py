"""What the tasks of a run are run on: single SAEs, pairs with a reference, families. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from saebench_meta.errors import SaebenchError
from saebench_meta.inputs import InputsFinder
from saebench_meta.plugins import Registry
from saebench_meta.record import Subject, SubjectSAE, TrainedSAE
from saebench_meta.resolve import ResolvedSAE, find_reference, resolve_sae
from saebench_meta.sae import SAEInfo
from saebench_meta.settings import Settings
from saebench_meta.task import Task
from saebench_meta.variants import Training, any_kept, in_words, is_kept, reference_training, trained_reference


@dataclass(frozen=True, eq=False)
class SubjectPlan:
    """What a task is run on: `sae` has one member, `pair` the SAE and its reference, `family` several."""

    kind: str
    members: tuple[ResolvedSAE, ...]
    unmet: str | None = None
    found: str | None = None
    """Where the reference of a pair was found, in words."""

    @property
    def name(self) -> str:
        names = [m.info.name for m in self.members]
        return f"{names[0]}-vs-{names[1]}" if self.kind == "pair" and len(names) == 2 else "+".join(names)

    @property
    def roles(self) -> tuple[str, ...]:
        return {"sae": ("sae",), "pair": ("sae", "reference")}.get(self.kind, ("member",) * len(self.members))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a record says of how the subject was put together."""
        if self.found is None:
            return ()
        reference = self.members[-1]
        return (f"reference: {reference.info.name} ({public_ref(reference)}), {self.found}",)

    def to_record(self, trained: Mapping[str, TrainedSAE] | None = None) -> Subject:
        """The subject as a record keeps it.

        Args:
            trained: by reference, what has become of the members that the run trained.
        """
        saes = [
            _in_record(m, role, (trained or {}).get(m.ref)) for m, role in zip(self.members, self.roles, strict=True)
        ]
        return Subject(kind=self.kind, name=self.name, saes=saes)  # type: ignore[arg-type]  # checked by the model


def _in_record(sae: ResolvedSAE, role: str, trained: TrainedSAE | None) -> SubjectSAE:
    info = sae.info if trained is None else trained.info
    return SubjectSAE(
        ref=public_ref(sae),
        role=role,  # type: ignore[arg-type]  # checked by the model
        loader=sae.scheme,
        loader_version=sae.loader.version if sae.training is None else sae.training.recipe.architecture_version,
        info=public_info(info),
        files=dict(sae.files),
        trained=trained,
    )


def public_info(info: SAEInfo) -> SAEInfo:
    """An SAE's info fit for a record: no path on this machine in its model or data set."""
    site = info.site.model_copy(update={"model": public_name(info.site.model)})
    dataset = None if info.dataset is None else public_name(info.dataset)
    return info.model_copy(update={"site": site, "dataset": dataset})


def public_name(ref: str) -> str:
    """A reference fit for a record that others read: a path on this machine is cut to its last part."""
    path = Path(ref)
    return path.name if path.is_absolute() or path.exists() or ref.startswith((".", "~")) else ref


def public_ref(sae: ResolvedSAE) -> str:
    """The reference of an SAE fit for a record: no path on this machine."""
    shown = public_name(sae.rest)
    return f"{sae.scheme}:{shown}" if shown else sae.scheme


class Subjects:
    """Subjects of a run: every `--sae` by itself, or the members, neighbours and whole of a `--family`."""

    def __init__(self, registry: Registry, settings: Settings, inputs: InputsFinder) -> None:
        if bool(settings.saes) == bool(settings.family):
            raise SaebenchError("give either --sae (once or more) or --family, not both and not neither")
        if settings.family and len(settings.family) < 2:
            raise SaebenchError("--family needs at least two SAEs; for one, use --sae")
        self.registry, self.settings, self.inputs = registry, settings, inputs
        self.notices: list[str] = []
        refs = settings.saes or settings.family
        if len(set(refs)) != len(refs):
            raise SaebenchError(f"the same SAE is named twice: {', '.join(r for r in refs if refs.count(r) > 1)}")
        self.saes = [self._resolve(ref) for ref in refs]
        self.reference = self._resolve(settings.reference) if settings.reference else None
        if settings.family:
            self._check_family()

    def _resolve(self, ref: str) -> ResolvedSAE:
        return resolve_sae(self.registry, ref, model=self.settings.model, hook=self.settings.hook)

    def _check_family(self) -> None:
        sites = {(s.info.site.model, s.own_hook, s.info.d_in) for s in self.saes}
        if len(sites) > 1:
            raise SaebenchError(f"a family shares one site; these have {len(sites)}: {sorted(sites)}")

    def _checked(self, sae: ResolvedSAE, reference: ResolvedSAE, found: str) -> SubjectPlan:
        """The pair, unless --hook would hide that the two belong to different hooks."""
        if self.settings.hook and sae.own_hook != reference.own_hook:
            raise SaebenchError(
                f"'{sae.ref}' reads {sae.own_hook} and '{reference.ref}' reads {reference.own_hook}: --hook does not "
                "make them comparable. Give a --reference at the same hook."
            )
        return SubjectPlan("pair", (sae, reference), found=found)

    def all(self) -> list[Callable[[Task], list[SubjectPlan]]]:
        """One function a row of the run: task -> the subjects it is run on there."""
        rows: list[Callable[[Task], list[SubjectPlan]]] = [self._row(i) for i in range(len(self.saes))]
        return [*rows, self._family_row] if self.settings.family else rows

    def _row(self, i: int) -> Callable[[Task], list[SubjectPlan]]:
        sae = self.saes[i]

        def subjects(task: Task) -> list[SubjectPlan]:
            if task.subject == "sae":
                return [SubjectPlan("sae", (sae,))]
            if task.subject == "pair":
                return self._pair(i, sae)
            return (
                [] if self.settings.family else [SubjectPlan("family", (sae,), "it needs several SAEs: give --family")]
            )

        return subjects

    def _family_row(self, task: Task) -> list[SubjectPlan]:
        return [SubjectPlan("family", tuple(self.saes))] if task.subject == "family" else []

    def _pair(self, i: int, sae: ResolvedSAE) -> list[SubjectPlan]:
        if self.reference is not None:
            return [self._checked(sae, self.reference, "named by --reference")]
        if self.settings.family:
            return [self._checked(sae, self.saes[i - 1], "its neighbour in --family")] if i else []
        return [self._with_kept_reference(sae) or self._with_found_reference(sae) or self._with_trained_reference(sae)]

    def _training(self, sae: ResolvedSAE) -> Training | None:
        """How a reference would be trained for it; None where there is nothing to train it on."""
        inputs = self.inputs.find(sae)
        return None if isinstance(inputs, str) else reference_training(self.registry, sae, inputs, self.settings)

    def _with_kept_reference(self, sae: ResolvedSAE) -> SubjectPlan | None:
        """The pair with the reference that was trained for it before: it comes before those that are looked for, so
        that files that come later do not change results.
        """
        if not any_kept(self.settings):
            return None
        training = self._training(sae)
        if training is None or not is_kept(training, self.settings):
            return None
        found = "trained for it before, from the cache"
        self.notices.append(f"reference of {sae.info.name}: {training.recipe.label} ({found})")
        return SubjectPlan("pair", (sae, trained_reference(sae, training)), found=found)

    def _with_found_reference(self, sae: ResolvedSAE) -> SubjectPlan | None:
        """The pair with a narrower SAE beside it on disk, or in the catalogue that it came from."""
        ref, where = find_reference(self.registry, sae) or (None, "")
        if ref is None:
            return None
        found = f"the widest narrower one, {where}"
        self.notices.append(f"reference of {sae.info.name}: {ref} ({found})")
        return self._checked(sae, self._resolve(ref), found)

    def _with_trained_reference(self, sae: ResolvedSAE) -> SubjectPlan:
        """The pair with a reference that is trained for it, or why there is none."""
        missing = "it needs a narrower SAE at the same site: give --reference REF"
        budget = 60 * self.settings.train_budget
        training = self._training(sae) if budget else None
        if training is None:
            return SubjectPlan("pair", (sae,), missing)
        seconds, label = training.seconds(self.settings), training.recipe.label
        if seconds > budget:
            why = f"training one ({label}) would take about {in_words(seconds)}, more than --train-budget"
            return SubjectPlan("pair", (sae,), f"{missing}; {why} {self.settings.train_budget:g} min")
        self.notices.append(
            f"reference of {sae.info.name}: none was found; {label} is trained for it, which takes about "
            f"{in_words(seconds)} (--train-budget 0 trains none)"
        )
        return SubjectPlan("pair", (sae, trained_reference(sae, training)), found="trained for it")
