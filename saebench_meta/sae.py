"""The one sparse autoencoder class every loader produces and every task reads.

Canonical form, with everything that can be folded in already folded into the weights (dataset-wide scaling, decoder
norms, the subtraction of `b_dec` before encoding, thresholds)::

    z, stats = transform(x)                       # per-token input transform, identity unless stated
    pre      = z @ W_enc + b_enc                  # (tokens, d_sae)
    f        = activation(pre)                    # codes
    x_hat    = inverse(f @ W_dec + b_dec, stats)

Paper, equations 1 and 2. Facts about the linear decoder (cosines, swaps) hold in the SAE's input space, that of `z`.
This module imports torch only inside functions, so that listing and planning stay instant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Shaped
    from torch import Tensor

    from saebench_meta.codes import Codes

ActivationName = Literal["relu", "jumprelu", "topk"]
InputTransform = Literal["none", "center", "layer_norm", "norm_rescale"]

UNKNOWN = "unknown"
"""What a loader puts where a file does not say its model or hook; the user must then say it."""

CACHED = 2**17
"""Pre-activations worked out at once on a CPU: 512 KB, which its cache keeps for what is done with them next."""
MIN_CHUNK, MAX_CHUNK = 64, 2048
"""Tokens whose pre-activations are worked out at once."""
LAYER_NORM_EPS = 1e-5
"""Added to the unbiased standard deviation in the division, not in undoing it: so do OpenAI's SAEs and sae-lens."""


def _printable(text: str) -> str:
    """Texts that come with a file end up in terminals and pages: no control characters, no line breaks."""
    if not text.isprintable():
        raise ValueError("holds control characters or line breaks")
    return text


Printable = Annotated[str, AfterValidator(_printable)]
"""Text without control characters."""


class Site(BaseModel):
    """Where in a language model an SAE reads: the model, its revision and a TransformerLens hook name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Printable = Field(
        min_length=1, description="Reference of the language model: `scheme:rest`, hub name or folder."
    )
    hook: Printable = Field(min_length=1, description="TransformerLens hook name, e.g. `blocks.8.hook_resid_pre`.")
    revision: Printable | None = Field(default=None, description="Pinned revision of the model, where it has one.")

    def __str__(self) -> str:
        return f"{self.model}/{self.hook}"


class SAEInfo(BaseModel):
    """What is known of an SAE besides its weights. `identity()` is the part that changes codes or site."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Printable = Field(min_length=1, description="Short name shown in tables.")
    site: Site
    d_in: int = Field(gt=0, description="Width of the activations read.")
    d_sae: int = Field(gt=0, description="Number of latents.")
    architecture: Printable = Field(
        default="relu", description="What it was trained as: relu, topk, batchtopk, jumprelu, …"
    )
    activation: ActivationName = Field(default="relu", description="Activation function at inference.")
    k: int | None = Field(default=None, gt=0, description="Latents kept per token by `topk`; training k otherwise.")
    input_transform: InputTransform = Field(default="none", description="What is done to each token before encoding.")
    prepend_bos: bool = Field(default=True, description="Whether a BOS token is put before every context.")
    context_size: int | None = Field(default=None, gt=0, description="Tokens per context in training.")
    dataset: Printable | None = Field(default=None, description="What it was trained on.")
    folded: tuple[Printable, ...] = Field(default=(), description="What the loader folded into the weights, in words.")
    notes: tuple[Printable, ...] = Field(default=(), description="Anything a reader of a result should know.")

    @model_validator(mode="after")
    def _topk_has_k(self) -> SAEInfo:
        if self.activation == "topk" and self.k is None:
            raise ValueError("activation 'topk' needs 'k'")
        if self.activation == "topk" and self.k is not None and self.k > self.d_sae:
            raise ValueError(f"k = {self.k} is more than d_sae = {self.d_sae}")
        return self

    def identity(self) -> dict[str, Any]:
        """Every field that changes codes or site; part of a record's id."""
        return self.model_dump(
            mode="json",
            include={"site", "d_in", "d_sae", "activation", "k", "input_transform", "prepend_bos", "context_size"},
        )


@runtime_checkable
class OpenEncoder(Protocol):
    """A foreign encoder z -> f whose weights can be named, so that its SAE can be told from others."""

    def __call__(self, z: Float[Tensor, "tokens d_in"], /) -> Float[Tensor, "tokens d_sae"]: ...

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> OpenEncoder:
        """The same encoder elsewhere."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Every tensor that codes depend on, by a name that stays."""
        ...

    def describe(self) -> str:
        """Everything else that codes depend on, the same text for the same encoder."""
        ...


@dataclass(frozen=True)
class TokenStats:
    """What a per-token input transform took out and its inverse puts back."""

    shift: Float[Tensor, "tokens 1"] | None = None
    scale: Float[Tensor, "tokens 1"] | None = None


@dataclass(frozen=True, eq=False)
class SAE:
    """A sparse autoencoder in canonical form.

    Attributes:
        W_enc: encoder, (d_in, d_sae).
        b_enc: encoder bias, (d_sae,).
        W_dec: decoder directions w_i as rows, (d_sae, d_in).
        b_dec: decoder bias, (d_in,).
        info: everything besides the weights.
        threshold: for `jumprelu`, (d_sae,): a latent is active where `pre > threshold` (and `pre > 0`).
        encoder: a foreign encoder `z -> f` (gated, stitched, …) that replaces `W_enc`, `b_enc` and the activation
            function; moved by its own `to(device=…, dtype=…)`, where it has one.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    info: SAEInfo
    threshold: Float[Tensor, " d_sae"] | None = None
    encoder: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        d_in, d_sae = self.info.d_in, self.info.d_sae
        expected = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        if self.info.activation == "jumprelu" and self.encoder is None:
            expected["threshold"] = (d_sae,)
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tensor is None:
                raise ValueError(f"SAE '{self.info.name}': activation '{self.info.activation}' needs '{name}'")
            if tuple(tensor.shape) != shape:
                raise ValueError(f"SAE '{self.info.name}': {name} has shape {tuple(tensor.shape)}, expected {shape}")

    @property
    def d_in(self) -> int:
        return self.info.d_in

    @property
    def d_sae(self) -> int:
        return self.info.d_sae

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> SAE:
        """The same SAE on another device or in another dtype; thresholds follow the dtype."""

        def move(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype)

        moves_encoder = getattr(self.encoder, "to", None)
        return replace(
            self,
            W_enc=move(self.W_enc),
            b_enc=move(self.b_enc),
            W_dec=move(self.W_dec),
            b_dec=move(self.b_dec),
            threshold=None if self.threshold is None else move(self.threshold),
            encoder=self.encoder if moves_encoder is None else moves_encoder(device=device, dtype=dtype),
        )

    def transform(self, x: Float[Tensor, "tokens d_in"]) -> tuple[Float[Tensor, "tokens d_in"], TokenStats]:
        """The per-token input transform, and the statistics its inverse needs."""
        import torch

        match self.info.input_transform:
            case "none":
                return x, TokenStats()
            case "center":
                mean = x.mean(-1, keepdim=True)
                return x - mean, TokenStats(shift=mean)
            case "layer_norm":
                mean = x.mean(-1, keepdim=True)
                std = x.std(-1, keepdim=True)
                return (x - mean) / (std + LAYER_NORM_EPS), TokenStats(shift=mean, scale=std)
            case "norm_rescale":
                scale = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
                scale = scale.clamp_min(torch.finfo(x.dtype).tiny)
                return x / scale, TokenStats(scale=scale)

    def inverse(self, z: Float[Tensor, "tokens d_in"], stats: TokenStats) -> Float[Tensor, "tokens d_in"]:
        """Back from the SAE's input space to activations."""
        if stats.scale is not None:
            z = z * stats.scale
        return z if stats.shift is None else z + stats.shift

    def preactivations(self, z: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_sae"]:
        """`z @ W_enc + b_enc`, with `z` in the SAE's own input space."""
        return preactivations(z, self.W_enc, self.b_enc)

    def activate(self, pre: Float[Tensor, "tokens d_sae"]) -> Float[Tensor, "tokens d_sae"]:
        """The activation function applied to pre-activations."""
        return activate(pre, self.info.activation, k=self.info.k, threshold=self.threshold)

    def encode(self, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_sae"]:
        """Dense codes f. For whole samples use `encode_sparse`, which never keeps a tokens × d_sae matrix."""
        return self._encode_z(self.transform(x)[0])

    def _encode_z(self, z: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_sae"]:
        return self.encoder(z) if self.encoder is not None else self.activate(self.preactivations(z))

    def encode_sparse(self, x: Float[Tensor, "tokens d_in"], *, chunk: int | None = None) -> Codes:
        """Codes of `x`, worked out `chunk` tokens at a time; None chooses by the device and the width."""
        import torch

        from saebench_meta.active import active_codes
        from saebench_meta.codes import Codes

        def codes(part: Tensor) -> Codes:
            if self.encoder is not None:
                return Codes.from_dense(self.encode(part))
            pre = self.preactivations(self.transform(part)[0])
            return active_codes(pre, self.info.activation, k=self.info.k, threshold=self.threshold)

        size = chunk or chunk_tokens(self.d_sae, x.device)
        return Codes.cat([codes(part) for part in torch.split(x, size)], n_latents=self.d_sae)

    def decode(
        self, f: Codes | Float[Tensor, "tokens d_sae"], stats: TokenStats | None = None
    ) -> Float[Tensor, "tokens d_in"]:
        """`f @ W_dec + b_dec`, taken back through the input transform with the `stats` of the same tokens."""
        import torch

        z_hat = self.b_dec.addmm(f, self.W_dec) if isinstance(f, torch.Tensor) else f.decode(self.W_dec) + self.b_dec
        if stats is None:
            if self.info.input_transform != "none":
                raise ValueError(f"SAE '{self.info.name}' has a per-token input transform: pass the tokens' stats")
            return z_hat
        return self.inverse(z_hat, stats)

    def reconstruct(self, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_in"]:
        """x_hat for activations x."""
        z, stats = self.transform(x)
        return self.decode(self._encode_z(z), stats)

    def unit_decoder(self) -> Float[Tensor, "d_sae d_in"]:
        """Decoder directions scaled to norm 1; a zero row stays zero."""
        import torch

        return torch.nn.functional.normalize(self.W_dec, dim=-1, eps=1e-12)

    def content_hash(self) -> str:
        """sha256 over the canonical weights (as float32 bytes) and the identity fields.

        Raises:
            ValueError: a foreign encoder has weights that it does not name; its loader must offer `peek`.
        """
        import json

        digest = hashlib.sha256(json.dumps(self.info.identity(), sort_keys=True).encode())
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        tensors: dict[str, Shaped[Tensor, ...] | None] = {name: getattr(self, name) for name in names}
        if isinstance(self.encoder, OpenEncoder):
            digest.update(self.encoder.describe().encode())
            tensors.update(self.encoder.tensors())
        elif self.encoder is not None:
            raise ValueError(f"SAE '{self.info.name}' has a foreign encoder: its loader must offer `peek`")
        for name, tensor in tensors.items():
            if tensor is not None:
                digest.update(name.encode())
                values = tensor.detach().float() if tensor.is_floating_point() else tensor
                digest.update(values.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        i = self.info
        return f"SAE({i.name!r}, {i.activation}, d_in={i.d_in}, d_sae={i.d_sae}, site={i.site})"


def chunk_tokens(d_sae: int, device: torch.device) -> int:
    """Tokens whose pre-activations are worked out at once."""
    return max(MIN_CHUNK, min(MAX_CHUNK, CACHED // d_sae)) if device.type == "cpu" else MAX_CHUNK


def encoder_key(sae: SAE) -> tuple[object, ...]:
    """Equal for SAEs that share their encoder, such as an SAE and its permuted controls: they have the same codes."""
    tensors = (sae.W_enc, sae.b_enc, sae.threshold, sae.encoder)
    return (*map(id, tensors), sae.info.activation, sae.info.k, sae.info.input_transform)


def preactivations(
    z: Float[Tensor, "tokens d_in"], W_enc: Float[Tensor, "d_in latents"], b_enc: Float[Tensor, " latents"]
) -> Float[Tensor, "tokens latents"]:
    """`z @ W_enc + b_enc`."""
    return b_enc.addmm(z, W_enc) if z.ndim == 2 else z @ W_enc + b_enc


def activate(
    pre: Float[Tensor, "tokens latents"],
    activation: ActivationName,
    *,
    k: int | None = None,
    threshold: Float[Tensor, " latents"] | None = None,
) -> Float[Tensor, "tokens latents"]:
    """An activation function applied to pre-activations; `topk` needs `k`, `jumprelu` needs `threshold`."""
    import torch

    from saebench_meta.active import top_places

    match activation:
        case "relu":
            return torch.relu(pre)
        case "jumprelu":
            assert threshold is not None
            return pre.masked_fill(pre <= threshold.clamp_min(0), 0)  # a NaN stays a NaN
        case "topk":
            assert k is not None
            if pre.ndim == 2 and not pre.requires_grad and (places := top_places(pre, k)) is not None:
                f = torch.zeros_like(pre, memory_format=torch.contiguous_format)
                f.view(-1)[places] = pre.reshape(-1)[places]
                return f
            top = pre.topk(k, dim=-1, sorted=False)
            return torch.zeros_like(pre).scatter_(-1, top.indices, torch.relu(top.values))
