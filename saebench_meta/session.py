"""What a run holds while it works: models, samples, activations, codes and controls, each made once and shared."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from saebench_meta import seeds
from saebench_meta.errors import SaebenchError
from saebench_meta.events import Event, Notice, Progress
from saebench_meta.inputs import Inputs
from saebench_meta.record import canonical_hash
from saebench_meta.sae import encoder_key
from saebench_meta.settings import Settings

if TYPE_CHECKING:
    import torch

    from saebench_meta.activations import Activations
    from saebench_meta.annotation import Truth
    from saebench_meta.cache import Cache
    from saebench_meta.codes import Codes
    from saebench_meta.corpus import Sample
    from saebench_meta.judge_desk import SeatedJudge
    from saebench_meta.labelled import Labelled
    from saebench_meta.labelled_sets import ResolvedLabelled
    from saebench_meta.models import LanguageModel
    from saebench_meta.plugins import Registry
    from saebench_meta.resolve import ResolvedSAE
    from saebench_meta.sae import SAE
    from saebench_meta.task import Output
    from saebench_meta.training.feed import Feed
    from saebench_meta.training.recipe import Recipe
    from saebench_meta.training.run import SiteFacts, Trained
    from saebench_meta.variants import Training

K = TypeVar("K")

CODES_LIMIT = 2 << 30
"""Bytes of codes kept at once; codes that would not fit are streamed instead, with a warning."""
PROGRESS_SECONDS = 0.1


class Site:
    """Model, sample and activations of one set of inputs, each made when first asked for."""

    def __init__(self, session: Session, inputs: Inputs) -> None:
        self.session, self.inputs = session, inputs
        self.memo: dict[tuple[object, ...], Any] = {}
        self._truths: dict[str, Truth] = {}
        self._labelled: dict[tuple[str, int | None, int | None], Labelled] = {}
        self._codes: OrderedDict[tuple[object, ...], tuple[SAE, Codes]] = OrderedDict()

    @property
    def lm(self) -> LanguageModel:
        return self.session.model(self.inputs)

    @cached_property
    def sample(self) -> Sample:
        from saebench_meta.corpus import Sampling, draw

        data, sampling = self.inputs.data, Sampling(**self.inputs.sampling)
        documents = data.loader.documents(
            data.rest, split=sampling.split, revision=data.identity.revision, text_field=sampling.text_field
        )
        return draw(documents, self.lm, sampling)

    @cached_property
    def activations(self) -> Activations:
        return self._collect(self.sample, "activations")

    def _collect(self, sample: Sample, what: str, share: int = 1) -> Activations:
        """Activations of a sample at the site, with its share of what is kept in memory."""
        from saebench_meta.activations import MEMORY_LIMIT, collect

        return collect(
            self.lm,
            self.inputs.hook,
            sample,
            cache=self.session.cache,
            memory_limit=MEMORY_LIMIT // share,
            batch_size=self.session.settings.batch_size,
            progress=lambda done, total: self.session.progress(what, done, total),
            notice=lambda message: self.session.emit(Notice("warning", message)),
        )

    def labelled(self, found: ResolvedLabelled, share: int = 1) -> Labelled:
        """A labelled set at the site, opened once; memory is shared among so many."""
        from saebench_meta.corpus import Sampling
        from saebench_meta.labelled import labelled_at

        if (kept := (found.name, found.limit, found.by_profile)) not in self._labelled:
            self._labelled[kept] = labelled_at(
                found.loader.load(found.rest),
                found.name,
                self.lm,
                Sampling(**{n: self.inputs.sampling[n] for n in ("context", "prepend_bos", "seed")}),
                lambda sample: self._collect(sample, f"{found.name}: activations", share),
                limit=found.limit,
                by_profile=found.by_profile,
                progress=self.session.progress,
            )
        return self._labelled[kept]

    def opened(self, found: ResolvedLabelled) -> Labelled | None:
        """A labelled set that a task has opened; None for one that none has."""
        return self._labelled.get((found.name, found.limit, found.by_profile))

    def truth(self, name: str) -> Truth:
        """Features on at every token of `activations`, as the truth of that name tells; worked out once."""
        from saebench_meta.annotation import annotate

        if name not in self._truths:
            known = self.session.registry.truths[name]
            self._truths[name] = annotate(known, self.inputs.data, self.sample, self.lm)
        return self._truths[name]

    def codes(self, sae: SAE) -> Codes:
        """Codes of the whole sample, kept while they fit; the least recently used go first."""
        key = encoder_key(sae)
        if key in self._codes:
            self._codes.move_to_end(key)
            return self._codes[key][1]
        from saebench_meta.codes import Codes

        if (predicted := self.predicted_bytes(sae)) > CODES_LIMIT:
            raise SaebenchError(
                f"codes of '{sae.info.name}' on {self.activations.n_tokens} tokens would take "
                f"{predicted / 2**30:.1f} GiB (limit {CODES_LIMIT / 2**30:.0f}): not sparse here. Use fewer --tokens."
            )
        parts = [codes for _, codes in self.stream_codes(sae)]
        codes = Codes.cat(parts, n_latents=sae.d_sae)
        self._codes[key] = (sae, codes)
        while len(self._codes) > 1 and sum(c.nbytes for _, c in self._codes.values()) > CODES_LIMIT:
            self._codes.popitem(last=False)
        return codes

    def predicted_bytes(self, sae: SAE) -> int:
        """Size of all codes, from those of the first chunk."""
        first = next(iter(self.activations), None)
        if first is None:
            return 0
        part = sae.encode_sparse(first.x[:512].to(sae.device))
        return int(part.nbytes / max(1, part.n_tokens) * self.activations.n_tokens)

    def stream_codes(self, sae: SAE) -> Iterator[tuple[Any, Codes]]:
        """Chunks of activations with their codes; nothing is kept."""
        done = 0
        for chunk in self.activations:
            codes = sae.encode_sparse(chunk.x.to(sae.device))
            done += codes.n_tokens
            self.session.progress(f"codes of {sae.info.name}", done, self.activations.n_tokens)
            yield chunk, codes

    def code_chunks(self, sae: SAE) -> Iterator[tuple[Any, Codes]]:
        """Chunks with their codes: cut from the kept codes where those fit, worked out again where not."""
        if encoder_key(sae) not in self._codes and self.predicted_bytes(sae) > CODES_LIMIT:
            self.session.warn_once(f"codes of '{sae.info.name}' are not sparse on this sample: streamed, not kept")
            yield from self.stream_codes(sae)
            return
        codes, start = self.codes(sae), 0
        for chunk in self.activations:
            stop = start + chunk.x.shape[0]
            yield chunk, codes[start:stop]
            start = stop


def _named(start: SAE) -> str:
    """The hash of an SAE that a training starts from."""
    try:
        return start.content_hash()
    except ValueError as e:
        raise SaebenchError(f"no training can start from '{start.info.name}': its encoder cannot be hashed") from e


KEPT_SAES = 8
"""SAEs, and controls, kept at once; those used longest ago go first."""


def _recent(kept: OrderedDict[K, SAE], key: K) -> SAE:
    """The entry, now the most recently used, with no more than `KEPT_SAES` kept."""
    kept.move_to_end(key)
    while len(kept) > KEPT_SAES:
        kept.popitem(last=False)
    return kept[key]


class Session:
    """Everything expensive of a run."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry, self.settings = registry, settings
        self._sites: dict[str, Site] = {}
        self._models: OrderedDict[str, LanguageModel] = OrderedDict()
        self._saes: OrderedDict[str, SAE] = OrderedDict()
        self._controls: OrderedDict[tuple[str, str, str], SAE] = OrderedDict()
        self.oracle_outputs: dict[str, Output] = {}
        self._last_progress, self._warned = 0.0, set[str]()
        self.trained: dict[str, Trained] = {}
        """By the hash of their key, the SAEs this run has trained or found trained."""
        self.seated: SeatedJudge | None = None  # the judge of the run, once it was asked for
        self._feed: tuple[str, Feed] | None = None
        """What decoders were last trained on: several in a row see the same."""

    # -- telling

    def emit(self, event: Event) -> None:
        self.registry.emit(event)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Emit progress, at most ten times a second; the last step always."""
        now = time.monotonic()
        if now - self._last_progress >= PROGRESS_SECONDS or done == total:
            self._last_progress = now
            self.emit(Progress(what, done, total))

    def warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            self.emit(Notice("warning", message))

    # -- having

    @cached_property
    def device(self) -> torch.device:
        import torch

        name = self.settings.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as e:
            raise SaebenchError(f"--device {name} cannot be used here: {str(e).splitlines()[0]}") from e
        return device

    @cached_property
    def cache(self) -> Cache | None:
        from saebench_meta.cache import Cache, default_root

        return Cache(self.settings.cache_dir or default_root()) if self.settings.cache else None

    def site(self, inputs: Inputs) -> Site:
        key = canonical_hash(inputs.key())
        if key not in self._sites:
            self._sites[key] = Site(self, inputs)
        return self._sites[key]

    def keep_only(self, inputs: Iterable[Inputs]) -> None:
        """Let go of the activations and codes of every site that no later unit reads."""
        needed = {canonical_hash(i.key()) for i in inputs}
        for key in self._sites.keys() - needed:
            del self._sites[key]
        self._feed = None

    def model(self, inputs: Inputs) -> LanguageModel:
        """The language model, with its hook checked; one is kept at a time."""
        import torch

        key = canonical_hash(inputs.model.key())
        if key not in self._models:
            self._models.clear()
            model = inputs.model
            self.emit(Notice("info", f"loading language model {model.ref}"))
            # Told only to loaders that are asked for it: most of them know one device.
            spread = {"device_map": self.settings.device_map} if self.settings.device_map else {}
            self._models[key] = model.loader.load(
                model.rest,
                revision=model.identity.revision or model.revision,
                device=self.device,
                dtype=getattr(torch, self.settings.dtype),
                **spread,
            )
        return self._models[key]

    def sae(self, resolved: ResolvedSAE, site: Site | None = None) -> SAE:
        """An SAE, loaded once; the last few are kept. A threshold that its file lacks is found on the site's sample."""
        from saebench_meta.calibration import calibrate_threshold, is_uncalibrated

        key = canonical_hash([resolved.ref, resolved.identity()])
        if key not in self._saes:
            made = self.trained_for(resolved.training).sae if resolved.training else None
            self._saes[key] = made or resolved.load(device=str(self.device))
        sae = _recent(self._saes, key)
        if site is None or not is_uncalibrated(sae.info) or sae.info.k is None:
            return sae
        key = canonical_hash([key, site.inputs.key()])
        if key not in self._saes:
            activations = (chunk.x.to(sae.device) for chunk in site.activations)
            self._saes[key] = calibrate_threshold(sae, activations, sae.info.k)
            self.warn_once(
                f"{sae.info.name}: its file has no threshold; it was set so that L0 is {sae.info.k} on this sample"
            )
        return _recent(self._saes, key)

    def close(self) -> None:
        """Let go of the judge, and of what it holds."""
        if self.seated is not None:
            self.seated.close()

    # -- training

    def trained_for(self, training: Training, start: SAE | None = None) -> Trained:
        """The SAE of a planned training: from the cache, or trained now on documents that are not evaluated.

        Args:
            start: the SAE that the training starts from, where its architecture says so.
        """
        from saebench_meta.training.job import facts_of

        facts = facts_of(replace(training.inputs, data=training.data))
        feed = partial(self._new_feed if start is None else self._held_feed, training)
        return self.train(training.recipe, training.key(), feed, facts, start)

    def _new_feed(self, training: Training) -> Feed:
        from saebench_meta.training.job import site_feed_of

        inputs = training.inputs
        self.model(inputs).check_hook(inputs.hook, training.d_in)
        exclude = frozenset(self.site(inputs).sample.document_ids) if training.excludes_sample else frozenset()
        return site_feed_of(self, inputs, training.data, training.recipe, exclude=exclude)

    def _held_feed(self, training: Training) -> Feed:
        """The same feed for as long as the same is asked for, so that the language model runs once for all of them."""
        recipe = training.recipe
        key = canonical_hash([{**training.key(), "recipe": None}, recipe.batch_size, recipe.data_seed])
        if self._feed is None or self._feed[0] != key:
            self._feed = None
            self._feed = key, self._new_feed(training)
        return self._feed[1]

    def train(
        self,
        recipe: Recipe,
        key: Mapping[str, Any],
        feed: Callable[[], Feed],
        facts: SiteFacts,
        start: SAE | None = None,
    ) -> Trained:
        """An SAE trained once for a key, in the cache; an interrupted training goes on where it was.

        Args:
            key: what determines the weights, besides `start`.
            feed: makes the activations, asked for only if there is something left to train.
            start: the SAE that the training starts from, where its architecture says so.

        Raises:
            SaebenchError: `start` is missing or does not fit, or training fails.
        """
        from saebench_meta.training.trainer import check_start

        check_start(self.registry.architectures[recipe.architecture], recipe, start)
        key = key if start is None else {**key, "start": _named(start)}
        digest = canonical_hash(dict(key))
        if digest not in self.trained:
            from saebench_meta.training.job import train_once

            self.trained[digest] = train_once(self, recipe, digest, feed, facts, start)
        return self.trained[digest]

    def control(self, name: str, resolved: ResolvedSAE, site: Site | None) -> SAE:
        """A control made of an SAE, the same for every task of the run."""
        identity = canonical_hash(resolved.identity())
        key = (name, identity, "" if site is None else canonical_hash(site.inputs.key()))
        if key not in self._controls:
            self._controls[key] = self._make_control(name, self.sae(resolved, site), identity, site)
        return _recent(self._controls, key)

    def _make_control(self, name: str, sae: SAE, identity: str, site: Site | None) -> SAE:
        from saebench_meta import controls

        purpose = ("control", name, identity)
        seed = self.settings.seed
        match name:
            case "permuted_rows":
                return controls.permuted_rows(sae, seeds.rng(seed, *purpose))
            case "permuted_columns":
                return controls.permuted_columns(sae, seeds.rng(seed, *purpose))
            case "random" if site is None:
                return controls.random_directions(sae, seeds.generator(seed, *purpose))
            case "random":
                assert site is not None
                l0 = sum(int(c.nnz) for _, c in site.code_chunks(sae)) / max(1, site.activations.n_tokens)
                return controls.random_sae(sae, site.activations, l0, seeds.generator(seed, *purpose))
        raise ValueError(f"no control is made by the name '{name}'")
