"""A local instruct model: requests as prompts, numbers of options as continuations, batches padded on the left.

The score of option k is `ln P(reply begins with k)`: the sum over how k may be written there (`k` and ` k`) of the
probability of its tokens in a row, `Σ_j ln p(t_j | prompt, t_<j)`. Nothing is divided by length: the numbers are of one
form, and where a tokenizer writes them as two tokens it does so for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.judging import Answer, Request
from saebench_plugins.judges.ties import pick

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.hookspecs import ModelIdentity

SPELLINGS = ("{}", " {}")
"""How a reply may begin with a number."""
TAIL = 64
"""Characters at the end of a prompt that decide how a number after it is split into tokens."""
DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro +%}"
"""Put before a chat template: some write today's date into the prompt, and answers would change with it."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A request as a model reads it.

    Attributes:
        ids: token ids, up to where the reply begins.
        numbers: for each option the token sequences that its number may be written as; empty for free text.
    """

    request: Request
    ids: tuple[int, ...]
    numbers: tuple[tuple[tuple[int, ...], ...], ...] = ()

    @property
    def kind(self) -> tuple[bool, int]:
        """What prompts of one batch share: whether one of several is chosen, and else how long a reply may be."""
        return bool(self.numbers), 0 if self.numbers else self.request.max_tokens


class LocalModel:
    """A causal language model and its tokenizer, in evaluation mode, gradients off.

    Args:
        name: what answers say that answered.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        from inspect import signature

        self._model, self._tokenizer, self.name = model, tokenizer, name
        self._template = None if tokenizer.chat_template is None else DATE + tokenizer.get_chat_template()
        self._positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._stops = _stops(model, tokenizer)
        self._pad = next(iter(self._stops), 0) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self._known: dict[tuple[str, int], tuple[tuple[tuple[int, ...], ...], ...]] = {}
        self._takes = signature(model.forward).parameters.keys()
        added = tokenizer.added_tokens_decoder.values()
        self._controls = [
            t.content for t in added if len(t.content.strip()) > 1 and (t.special or t.content[0] in "<[")
        ]

    # -- prompts

    def prompt(self, request: Request) -> Prompt:
        """A request through the chat template, or as plain text where the tokenizer has none.

        Raises:
            SaebenchError: the tokenizer has no tokens for numbers.
        """
        text = self.text(request)
        return Prompt(request, self._encode([text])[0], self._numbers(text[-TAIL:], len(request.options)))

    def _numbers(self, tail: str, options: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """For each option the token sequences that its number may be written as after a prompt that ends so."""
        if (tail, options) not in self._known:
            labels = [form.format(k + 1) for k in range(options) for form in SPELLINGS]
            start, *whole = self._encode([tail, *(tail + label for label in labels)])
            # A label that melts into the end of the prompt is no continuation of it.
            after = [seq[len(start) :] if seq[: len(start)] == start else () for seq in whole]
            each = len(SPELLINGS)
            forms = [dict.fromkeys(filter(None, after[i : i + each])) for i in range(0, len(after), each)]
            if not all(forms) or len(set().union(*forms)) < sum(map(len, forms)):
                raise SaebenchError(
                    f"judge 'hf': the tokenizer of '{self.name}' does not tell numbers apart: give an instruct model"
                )
            self._known[tail, options] = tuple(map(tuple, forms))
        return self._known[tail, options]

    def text(self, request: Request) -> str:
        """The prompt as text, up to where the reply begins."""
        system, user = self._defused(request.system), self._defused(request.user)
        if self._template is None:
            return "\n\n".join(part for part in (system, user) if part) + "\n"
        said = self._chat(("system", system), ("user", user)) if system else None
        if said is None or system.strip() not in said:  # there are templates that refuse the role, or drop it
            said = self._chat(("user", f"{system}\n\n{user}".strip()))
        if said is None:
            raise SaebenchError(f"judge 'hf': the chat template of '{self.name}' cannot be filled: use another model")
        return said

    def _chat(self, *messages: tuple[str, str]) -> str | None:
        """Messages through the chat template; None where it refuses them."""
        from jinja2 import TemplateError

        chat = [{"role": role, "content": content} for role, content in messages]
        how = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False, "date_string": "26 Jul 2024"}
        try:
            said: str = self._tokenizer.apply_chat_template(chat, chat_template=self._template, **how)
        except (TemplateError, TypeError, ValueError):
            return None
        return said

    def _defused(self, text: str) -> str:
        """The text with a space in every control token that it spells out: it is quoted, not meant."""
        for control in self._controls:
            text = text.replace(control, f"{control[0]} {control[1:]}")
        return text

    def _encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        rows = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        bos = self._tokenizer.bos_token_id if self._template is None else None
        return [tuple(row) if bos is None else (int(bos), *row) for row in rows]

    # -- answers

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answers to prompts of one kind, in one batch. A prompt that leaves no room for a reply is `too long`."""
        fitting = [p for p in prompts if self._fits(p)]
        found = iter(self._chosen(fitting) if prompts[0].numbers else self._written(fitting))
        return [next(found) if self._fits(p) else self._answer(p, problem="too long") for p in prompts]

    def _fits(self, prompt: Prompt) -> bool:
        longest = max((len(seq) for forms in prompt.numbers for seq in forms), default=prompt.request.max_tokens)
        return self._positions is None or len(prompt.ids) + longest <= self._positions

    def _answer(self, prompt: Prompt, **what: Any) -> Answer:
        return Answer(model=self.name, prompt_tokens=len(prompt.ids), cost=0.0, **({"completion_tokens": 0} | what))

    def _chosen(self, prompts: Sequence[Prompt]) -> list[Answer]:
        found = []
        for prompt, scores in zip(prompts, self.number_log_probs(prompts), strict=True):
            tied = (scores == scores.max()).nonzero().flatten().tolist()
            found.append(self._answer(prompt, choice=pick(prompt.request, tied, prompt.request.user)))
        return found

    def number_log_probs(self, prompts: Sequence[Prompt]) -> list[Float[Tensor, " options"]]:
        """For each prompt and option the logarithm of the probability that the reply begins with its number."""
        import torch

        # One row a prompt, and one more where a number is written as several tokens, for each way they begin.
        starts = [
            (i, seq[:end])
            for i, prompt in enumerate(prompts)
            for seq in dict.fromkeys(seq for forms in prompt.numbers for seq in forms)
            for end in range(len(seq))
        ]
        rows = {start: n for n, start in enumerate(dict.fromkeys(starts))}
        if not rows:
            return []
        log_p = self._next_log_probs([(*prompts[i].ids, *start) for i, start in rows])

        def of(i: int, seq: tuple[int, ...]) -> Tensor:
            return sum((log_p[rows[i, seq[:j]], token] for j, token in enumerate(seq)), torch.tensor(0.0))

        return [
            torch.stack([torch.stack([of(i, seq) for seq in forms]).logsumexp(0) for forms in prompt.numbers])
            for i, prompt in enumerate(prompts)
        ]

    def _next_log_probs(self, rows: Sequence[tuple[int, ...]]) -> Float[Tensor, "rows vocab"]:
        """Log-probabilities after each row's last token, in float32 on the CPU."""
        import torch

        from saebench_meta.models import strict_fp32

        ids, mask = self._padded(rows)
        more: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1}
        # Left to itself a model counts padding as positions.
        more["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
        kept = {name: value for name, value in more.items() if name in self._takes}
        with torch.no_grad(), strict_fp32():
            logits: Tensor = self._model(input_ids=ids, attention_mask=mask, **kept).logits[:, -1]
        return logits.float().log_softmax(1).cpu()

    def _written(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """The greedy reply to each prompt."""
        import torch

        from saebench_meta.models import strict_fp32

        if not prompts:
            return []
        ids, mask = self._padded([p.ids for p in prompts])
        with torch.no_grad(), strict_fp32():
            made = self._model.generate(ids, attention_mask=mask, max_new_tokens=prompts[0].request.max_tokens)
        return [self._reply(p, row) for p, row in zip(prompts, made[:, ids.shape[1] :].tolist(), strict=True)]

    def _reply(self, prompt: Prompt, row: list[int]) -> Answer:
        end = next((n for n, token in enumerate(row) if token in self._stops), len(row))
        text = self._tokenizer.decode(row[:end], skip_special_tokens=True).strip()
        said: dict[str, Any] = {"text": text} if text else {"problem": "empty"}
        return self._answer(prompt, completion_tokens=min(end + 1, len(row)), **said)

    def _padded(
        self, rows: Sequence[tuple[int, ...]]
    ) -> tuple[Int[Tensor, "rows tokens"], Bool[Tensor, "rows tokens"]]:
        """Rows padded on the left, so that all end where the reply begins, and the mask of what is real."""
        import torch

        width = max(map(len, rows))
        ids = torch.tensor([[self._pad] * (width - len(row)) + list(row) for row in rows])
        real = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
        return ids.to(self._model.device), real.to(self._model.device)


def load(identity: ModelIdentity, ref: str, *, device: str | torch.device, dtype: str) -> LocalModel:
    """Open a model that has been identified: a folder where it has no revision, else that commit of the hub.

    Args:
        ref: as the user named it.
        dtype: name of a torch dtype, or `auto`: as the weights are stored.

    Raises:
        SaebenchError: it cannot be opened; says why.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from saebench_meta import foreign_code
    from saebench_meta.models import _quiet_loading
    from saebench_meta.subjects import public_name

    place = str(Path(ref).expanduser()) if identity.revision is None else identity.ref
    at: dict[str, Any] = {"revision": identity.revision or "main", "trust_remote_code": False}
    wanted = "auto" if dtype == "auto" else getattr(torch, dtype)
    with foreign_code.refused(ref), _quiet_loading():
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, **at)
            model = AutoModelForCausalLM.from_pretrained(place, dtype=wanted, use_safetensors=True, **at).to(device)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as e:
            first = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise SaebenchError(f"judge 'hf': model '{ref}' cannot be opened: {first}") from e
    stops = _stops(model, tokenizer)
    # In place of what comes with the model, which may ask for sampling, penalties or beams.
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stops), 0)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=stops or None, pad_token_id=pad)
    model.requires_grad_(False).eval()
    return LocalModel(model, tokenizer, public_name(identity.ref))


def _stops(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a reply, by the model's generation settings and by its tokenizer."""
    said = model.generation_config.eos_token_id
    listed = said if isinstance(said, list) else [said]
    return [int(i) for i in dict.fromkeys([*listed, tokenizer.eos_token_id]) if i is not None]
