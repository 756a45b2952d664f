"""The judge `hf`: a local instruct model through transformers. Nothing leaves the machine.

    --judge hf -J model=./folder        folder with config.json, a tokenizer and *.safetensors
    --judge hf -J model=owner/name      hub name

Of several options it takes the one whose number is the likeliest reply; free text is its greedy reply. Only safetensors
are opened, and no code that comes with a model is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError, did_you_mean
from saebench_meta.judging import Answer, JudgeLoader, JudgeServices, Request

if TYPE_CHECKING:
    from saebench_meta.hookspecs import ModelIdentity
    from saebench_plugins.judges.hf_model import LocalModel, Prompt

DTYPES = ("auto", "float32", "bfloat16", "float16")
MAX_OPTIONS = 9
"""Beyond it the number of one option begins that of another."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
SHAPING = ("chat_template.jinja", "generation_config.json")
"""Files that change a reply, beside those that change what a model computes on a text."""
VERSION = 1


class HfJudge:
    """A local model that is asked in batches; loaded when an answer is not in the cache. See `judging.Judge`."""

    def __init__(self, options: Mapping[str, Any], services: JudgeServices) -> None:
        self._options, self._services = options, services
        self._identity = identity(options)
        self._batch_size = int(options["batch_size"])
        self._opened: LocalModel | None = None

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request. Problems: `too long`, `empty`, and `unsupported` for more than nine options."""
        keys = [self._key(r) for r in requests]
        answers = {i: kept for i, key in enumerate(keys) if (kept := self._services.cache.get(key)) is not None}
        self._services.progress(len(answers), len(requests))
        missing = {i: r for i, r in enumerate(requests) if i not in answers}
        for found in self._answered(missing):
            answers.update(found)
            for i, answer in found.items():
                self._services.cache.put(keys[i], answer)
            self._services.progress(len(answers), len(requests))
        return [answers[i] for i in range(len(requests))]

    def _answered(self, requests: Mapping[int, Request]) -> Iterator[dict[int, Answer]]:
        """Answers by request number, batch by batch."""
        prompts: dict[int, Prompt] = {}
        for i, request in requests.items():
            if len(request.options) > MAX_OPTIONS:
                yield {i: Answer(problem="unsupported", cost=0.0)}
            else:
                prompts[i] = self._model.prompt(request)
        # Prompts of like length together, so that little is padded; the longest first, so that memory runs out early.
        order = sorted(prompts, key=lambda i: (prompts[i].kind, -len(prompts[i].ids), i))
        for _, alike in groupby(order, key=lambda i: prompts[i].kind):
            yield from self._batches({i: prompts[i] for i in alike})

    def _batches(self, prompts: Mapping[int, Prompt]) -> Iterator[dict[int, Answer]]:
        import torch

        from saebench_meta.batches import is_out_of_memory

        waiting = list(prompts)
        while waiting:
            batch = waiting[: self._batch_size]
            try:
                found = self._model.answers([prompts[i] for i in batch])
            except RuntimeError as e:
                if not is_out_of_memory(e):
                    raise
                self._halve(e)
            else:
                yield dict(zip(batch, found, strict=True))
                waiting = waiting[len(batch) :]
                continue
            # Outside the handler: the exception's traceback held the tensors of the failed pass.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _halve(self, error: RuntimeError) -> None:
        if self._batch_size == 1:
            raise SaebenchError("judge 'hf': out of memory on one request: give a smaller model or --device") from error
        self._batch_size //= 2
        self._services.warn(f"judge 'hf': out of memory; batches are now of {self._batch_size}")

    @property
    def _model(self) -> LocalModel:
        if self._opened is None:
            from saebench_plugins.judges.hf_model import load

            ref, dtype = self._options["model"], self._options["dtype"]
            self._opened = load(found(self._options), ref, device=self._services.device, dtype=dtype)
        return self._opened

    def _key(self, request: Request) -> str:
        from saebench_meta.judge_cache import answer_key

        asked = {name: getattr(request, name) for name in ("system", "user", "max_tokens", "sample")}
        about = {"options": list(request.options), "judge": "hf", "version": VERSION}
        return answer_key(asked | about | self._identity)


# -- options


def check(options: Mapping[str, Any]) -> None:
    """That there is a model, with a tokenizer, under the name; opens no weights.

    Raises:
        SaebenchError: what to set.
    """
    if options["dtype"] not in DTYPES:
        raise SaebenchError(f"judge 'hf': -J dtype={options['dtype']}{did_you_mean(options['dtype'], list(DTYPES))}")
    if options["batch_size"] < 1:
        raise SaebenchError(f"judge 'hf': -J batch_size={options['batch_size']}: give the requests of one forward pass")
    identified = found(options)
    folder = Path(options["model"]).expanduser()
    if identified.revision is None and not any((folder / name).is_file() for name in TOKENIZERS):
        raise SaebenchError(
            f"judge 'hf': '{options['model']}' has no {TOKENIZERS[0]}: save its tokenizer in the folder"
        )


def identity(options: Mapping[str, Any]) -> dict[str, Any]:
    """The model by name and commit, or by the hashes of its files, and its dtype."""
    from saebench_meta.resolve import file_sha256
    from saebench_meta.subjects import public_name

    identified = found(options)
    files = dict(identified.files)
    if identified.revision is None:
        shaping = [Path(options["model"]).expanduser() / name for name in SHAPING]
        files |= {path.name: file_sha256(path) for path in shaping if path.is_file()}
    known = {"model": public_name(identified.ref), "revision": identified.revision}
    return known | {"files": files, "dtype": options["dtype"]}


def found(options: Mapping[str, Any]) -> ModelIdentity:
    """What the model's name stands for.

    Raises:
        SaebenchError: none is named, or it cannot be had; says what to set.
    """
    from saebench_plugins.huggingface import peek_model

    if not options["model"]:
        raise SaebenchError("judge 'hf': no model is named; give -J model=PATH-OR-NAME, an instruct model's")
    try:
        return peek_model(options["model"], revision=options["revision"] or None)
    except SaebenchError as e:
        raise SaebenchError(f"judge 'hf': {str(e).replace('--revision', '-J revision=')}") from e


LOADER = JudgeLoader(
    make=HfJudge,
    options={"model": "", "revision": "", "dtype": "auto", "batch_size": 8},
    identity=identity,
    check=check,
    version=VERSION,
    summary="a local instruct model: -J model=PATH-OR-NAME",
)
