"""Language models as tasks see them: read-only, raw weights, activations at a site and logits under an edit of it.

`LanguageModel` wraps a TransformerLens `TransformerBridge` and uses only what its releases 3.9 and 4.x share; a
`HookedTransformer` that a user passes works as well. Rows are padded on the right and models are causal, so that what
stands after a token never moves it: no attention mask is needed, and padding only costs time.

Convention of every cross-entropy: the loss of predicting a token stands at that token's own position and counts where
the predicted token is evaluated (real and not special). With BOS prepended the prediction of a text's first token, made
from BOS, counts; BOS itself is never predicted. Means are over tokens, not over documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError, did_you_mean

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    Edit = Callable[[Float[Tensor, "batch tokens d_in"]], Float[Tensor, "batch tokens d_in"]]

PER_HEAD = ("hook_z", "hook_q", "hook_k", "hook_v")
"""Hooks whose activation is (batch, tokens, heads, d_head): read and edited with the heads joined."""
PROBE_TOKENS = 3


@contextmanager
def strict_fp32() -> Iterator[None]:
    """Products of float32 matrices in float32 (no TF32, no bfloat16), and the earlier settings back afterwards."""
    import torch

    backends: Any = torch.backends
    switches = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        settings, strict = [(s, "fp32_precision") for s in switches], "ieee"
    else:  # torch before 2.9; its two ways of saying this must not be mixed in one process
        settings, strict = [(backends.cuda.matmul, "allow_tf32"), (backends.cudnn, "allow_tf32")], ""
    before = [(owner, name, getattr(owner, name)) for owner, name in settings]
    try:
        for owner, name in settings:
            setattr(owner, name, strict or False)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


class LanguageModel:
    """A causal language model with gradients off.

    Attributes:
        ref: reference, as the loader knows it.
        revision: commit of the hub, where there is one.
        files: sha256 of local files by name.
        tokenizer: the Hugging Face tokenizer, or None.
        bos_id: token put before a text, or None if the tokenizer has none.
        special_ids: ids of special tokens (BOS, EOS, padding, …): never evaluated.
        d_model, n_layers, n_ctx, vocab_size: sizes.
        backend: library and version that ran the model.
        processing: `raw` weights, or what the user's model had done to them.
    """

    def __init__(
        self, model: Any, *, ref: str, revision: str | None = None, files: Mapping[str, str] | None = None
    ) -> None:
        """Take over a `TransformerBridge` (or `HookedTransformer`): evaluation mode, `requires_grad` off.

        Raises:
            SaebenchError: the model is not causal.
        """
        self._model, self.ref, self.revision, self.files = model, ref, revision, dict(files or {})
        cfg = model.cfg
        if getattr(cfg, "attention_dir", "causal") != "causal":
            raise SaebenchError(f"model '{ref}' is not causal (attention: {cfg.attention_dir}); give a decoder model")
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.d_model, self.n_layers = int(cfg.d_model), int(cfg.n_layers)
        self.n_ctx, self.vocab_size = int(cfg.n_ctx), int(cfg.d_vocab)
        self.tokenizer: Any = getattr(model, "tokenizer", None)
        bos = getattr(self.tokenizer, "bos_token_id", None)
        self.bos_id: int | None = None if bos is None else int(bos)
        self.special_ids = _special_ids(self.tokenizer)
        self.backend, self.processing = _backend(), _processing(model)
        self._hooks = frozenset(model.hook_dict)
        self._widths: dict[str, int] = {}
        self._branching: dict[str, bool] = {}

    @property
    def device(self) -> torch.device:
        import torch

        return torch.device(str(self._model.cfg.device))

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._model.cfg.dtype
        return dtype

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens added; one written out in a text stays one token."""
        if self.tokenizer is None:
            raise SaebenchError(f"model '{self.ref}' has no tokenizer: add tokenizer.json to its folder")
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def check_hook(self, hook: str, d_in: int | None = None) -> None:
        """Refuse a hook this model does not have, or whose activation is not one vector of width `d_in` a token.

        Raises:
            SaebenchError: names the nearest hooks, the number of layers, or both widths.
        """
        layer = _layer(hook)
        if layer is not None and layer >= self.n_layers:
            raise SaebenchError(f"hook '{hook}': model '{self.ref}' has layers 0 to {self.n_layers - 1}")
        if hook not in self._hooks:
            raise SaebenchError(f"hook '{hook}' is not in model '{self.ref}'{did_you_mean(hook, self._near(layer))}")
        width = self._width(hook)
        if d_in is not None and width != d_in:
            raise SaebenchError(
                f"hook '{hook}' of model '{self.ref}' is {width} wide, the SAE reads {d_in}: "
                "wrong model or hook; give --model or --hook"
            )

    def activations(self, tokens: Int[Tensor, "batch tokens"], hook: str) -> Float[Tensor, "batch tokens d_in"]:
        """Activations at a hook in float32; the model runs no further than the hook.

        Raises:
            SaebenchError: the hook did not fire, or gives no vector per token.
        """
        found: list[Tensor] = []

        def keep(x: Tensor, hook: Any) -> None:  # noqa: ARG001
            found.append(x.detach())
            # `stop_at_layer` would run the rest of the layer, and after the last one the unembedding.
            raise _Stop

        with suppress(_Stop):
            self._run(tokens, hook, keep)
        if not found:
            raise SaebenchError(f"hook '{hook}' of model '{self.ref}' gave no activation: it is switched off there")
        return self._joined(found[0], hook, tokens).float()

    def logits(
        self, tokens: Int[Tensor, "batch tokens"], *, hook: str | None = None, edit: Edit | None = None
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Logits in float32, with the activation at `hook` replaced by `edit` of it where one is given.

        Args:
            edit: gets the activation in float32, (batch, tokens, d_in) with heads joined; returns one of that shape.

        Raises:
            ValueError: `hook` without `edit` or the reverse, or an edit that changes the shape.
            SaebenchError: the hook did not fire.
        """
        if (hook is None) != (edit is None):
            raise ValueError("logits: give both hook and edit, or neither")
        fired: list[bool] = []

        def replace(x: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
            assert edit is not None and name is not None
            fired.append(True)
            before = self._joined(x, name, tokens).float()
            after = edit(before)
            if after.shape != before.shape:
                raise ValueError(f"edit at '{name}' returned {tuple(after.shape)} for {tuple(before.shape)}")
            return after.to(x).reshape(x.shape)

        name = hook
        logits: Tensor = self._run(tokens, hook, replace)
        if hook is not None and not fired:
            raise SaebenchError(f"hook '{hook}' of model '{self.ref}' did not fire: it is switched off there")
        return logits.float()

    def branches(
        self,
        tokens: Int[Tensor, "rows tokens"],
        hook: str,
        x: Float[Tensor, "rows tokens d_in"],
        ends: Int[Tensor, " rows"],
    ) -> Float[Tensor, "rows vocab"]:
        """Logits in float32 after each row's last token, with the activation at `hook` put in place of the row's own.

        Where a trial, once a hook, shows that this is sound (`branching`), what stands before the hook runs only once.

        Args:
            ends: position of each row's last token; what stands after it is padding.

        Raises:
            ValueError: `x` is not for these tokens.
        """
        from saebench_meta import branching

        if x.shape[:2] != tokens.shape or ends.shape != tokens.shape[:1]:
            raise ValueError(f"branches: {tuple(x.shape)} and {len(ends)} ends for {tuple(tokens.shape)} tokens")
        branch = partial(branching.branched, self._run, cut=branching.LAST_HOOK in self._hooks)
        if hook not in self._branching:
            self._branching[hook] = branching.can_branch(self, hook, branch)
        return (branch if self._branching[hook] else partial(branching.repeated, self))(tokens, hook, x, ends)

    def _run(
        self,
        tokens: Int[Tensor, "batch tokens"],
        hook: str | None,
        function: Callable[..., Any],
        more: Sequence[tuple[str, Callable[..., Any]]] = (),
    ) -> Any:
        """One forward pass; TransformerLens removes the hooks in a `finally`, so an error in one leaves none behind."""
        import torch

        # Some releases pass over names they do not know without a word.
        if hook is not None and hook not in self._hooks:
            raise SaebenchError(f"hook '{hook}' is not in model '{self.ref}'")
        tokens = tokens.to(self.device)
        # Not inference_mode: what is collected here may later be trained on.
        with torch.no_grad(), strict_fp32():
            if hook is None:
                return self._model(tokens, return_type="logits")
            return self._model.run_with_hooks(tokens, fwd_hooks=[(hook, function), *more])

    def _joined(self, x: Tensor, hook: str, tokens: Tensor) -> Float[Tensor, "batch tokens d_in"]:
        if x.ndim == 4 and hook.endswith(PER_HEAD):
            x = x.flatten(2)
        if x.ndim != 3 or x.shape[:2] != tokens.shape:
            raise SaebenchError(
                f"hook '{hook}' of model '{self.ref}' gives {tuple(x.shape)} for {tuple(tokens.shape)} tokens: "
                "not one vector per token, so no SAE can read it"
            )
        return x

    def _width(self, hook: str) -> int:
        if hook not in self._widths:
            import torch

            probe = torch.full((1, PROBE_TOKENS), self.bos_id or 0)
            try:
                self._widths[hook] = int(self.activations(probe, hook).shape[-1])
            except ValueError as e:  # TransformerLens refuses hooks that are off unless asked for
                raise SaebenchError(f"hook '{hook}' of model '{self.ref}' cannot be read: {e}") from e
        return self._widths[hook]

    def _near(self, layer: int | None) -> list[str]:
        """Hooks worth suggesting: those of the same layer, in TransformerLens's names."""
        start = "hook_" if layer is None else f"blocks.{layer}."
        return [h for h in self._hooks if h.startswith(start)]

    def __repr__(self) -> str:
        return f"LanguageModel({self.ref!r}, {self.n_layers} layers, d_model={self.d_model}, {self.backend})"


def load_bridge(
    path_or_name: str,
    *,
    ref: str,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    device_map: str | None = None,
    files: Mapping[str, str] | None = None,
) -> LanguageModel:
    """Open a Hugging Face model (hub name or folder) through TransformerLens: raw weights, no code from the model.

    Args:
        ref, revision, files: what the result records of itself.
        device: where the whole model goes, unless `device_map` is given.
        dtype: float32 unless given.
        device_map: how accelerate spreads the model over all GPUs (`auto`, `balanced`, …).

    Raises:
        SaebenchError: TransformerLens cannot open it, or it wants code of its own; says why.
    """
    import torch

    from saebench_meta import foreign_code

    with foreign_code.refused(ref), _quiet_loading():
        from safetensors import SafetensorError
        from transformer_lens.model_bridge import TransformerBridge

        try:
            bridge = TransformerBridge.boot_transformers(
                path_or_name,
                revision=revision,
                device=None if device_map else str(device),
                device_map=device_map,
                dtype=dtype or torch.float32,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
            first = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise SaebenchError(f"language model '{ref}' cannot be opened: {first}") from e
    _fuse_gelu(bridge.original_model)
    return LanguageModel(bridge, ref=ref, revision=revision, files=files)


def _fuse_gelu(model: torch.nn.Module) -> None:
    """GPT-2's GELU in one kernel instead of eight: the same function, to rounding."""
    import torch
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, torch.nn.GELU(approximate="tanh"))


def next_token_log_probs(
    logits: Float[Tensor, "batch tokens vocab"],
    tokens: Int[Tensor, "batch tokens"],
    evaluated: Bool[Tensor, "batch tokens"],
) -> tuple[Float[Tensor, "predictions vocab"], Float[Tensor, " predictions"], Bool[Tensor, "batch tokens"]]:
    """Log-probabilities of every counted prediction and of the token that came, in nats.

    The token at position t is predicted by `log softmax(logits[:, t - 1])`. Nothing predicts a row's first token, so it
    is never counted. With BOS prepended, the token after BOS is predicted from BOS alone, and counts.

    Returns:
        log-probabilities (float32), row by row; cross-entropy of each; and the mask of the predicted tokens:
        `evaluated` without the first position.
    """
    mask = evaluated.to(logits.device).clone()
    mask[:, 0] = False
    log_probs = logits[:, :-1][mask[:, 1:]].float().log_softmax(-1)
    targets = tokens.to(logits.device)[mask].long()
    return log_probs, -log_probs.gather(1, targets[:, None]).squeeze(1), mask


def _layer(hook: str) -> int | None:
    parts = hook.split(".")
    return int(parts[1]) if parts[0] == "blocks" and len(parts) > 2 and parts[1].isdigit() else None


class _Stop(BaseException):  # no error: nothing on the way may take it for one
    """The forward pass has gone far enough."""


def _special_ids(tokenizer: Any) -> frozenset[int]:
    """Named special tokens, and reserved ones that only the tokenizer's own file marks as special."""
    if tokenizer is None:
        return frozenset()
    added = getattr(tokenizer, "added_tokens_decoder", {})
    reserved = (i for i, token in added.items() if getattr(token, "special", False))
    return frozenset(int(i) for i in (*tokenizer.all_special_ids, *reserved))


def _backend() -> str:
    from importlib.metadata import version

    return f"transformer-lens {version('transformer-lens')}"


def _processing(model: Any) -> str:
    if getattr(model, "compatibility_mode", False):
        return "compatibility mode"
    normalization = str(getattr(model.cfg, "normalization_type", None) or "")
    return "folded layer norm" if normalization.endswith("Pre") else "raw"


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No progress bars from transformers: the run shows its own progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
