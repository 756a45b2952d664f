"""Everything a run is asked to do, in one place, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from saebench_meta.errors import SaebenchError, did_you_mean

Profile = Literal["quick", "default", "paper"]
Dtype = Literal["float32", "bfloat16"]
Packing = Literal["documents", "concat"]
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]

PROFILE_TOKENS: dict[str, int] = {"quick": 8_192, "default": 65_536, "paper": 1_048_576}
"""Evaluated tokens a profile samples."""

PROFILE_TEXTS: dict[str, int] = {"quick": 400}
"""Texts of a labelled set that a profile uses, or somewhat more where a class would have too few; else all of it."""

DEFAULT_CONTEXT = 128
"""Tokens per context when neither the SAE nor the user says."""


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Attributes:
        saes: references run independently over shared activations.
        family: references of one ordered subject.
        tasks: names and globs; `all` is every task.
        reference: SAE to compare with; found if not given.
        parameters: task -> parameter -> value, over the task's defaults.
        model, hook, revision: what the user says of the site, over what the SAE says.
        corpus, split, text_field, data_revision: where documents come from.
        labelled: labelled sets, by reference; what the plugins offer for the model if not given.
        judge, judge_options: who answers the questions of tasks that need a judge, and its options by name.
        max_cost: most US dollars that a judge may cost; None is without a limit.
        context, packing, tokens: how they are sampled; None is what the SAE or the profile says.
        train_budget: minutes that training a missing reference may take by the estimate; 0 never trains one.
        limit: seeded subset in each task's own unit; marks the record partial.
        device_map: how the language model is spread over all GPUs; None keeps it whole on `device`.
        jobs: processes that share the units, each with its own language model.
        dtype: of the language model; SAEs, codes and statistics are float32 and float64 throughout.
    """

    saes: tuple[str, ...] = ()
    family: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("all",)
    reference: str | None = None
    out: Path = Path("out")
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    model: str | None = None
    revision: str | None = None
    hook: str | None = None
    corpus: str | None = None
    split: str | None = None
    text_field: str = "text"
    data_revision: str | None = None
    labelled: tuple[str, ...] = ()
    context: int | None = None
    packing: Packing = "documents"
    tokens: int | None = None
    judge: str | None = None
    judge_options: dict[str, Any] = field(default_factory=dict)
    max_cost: float | None = None
    train_budget: float = 30.0
    profile: Profile = "default"
    seed: int = 0
    limit: int | None = None
    device: str = "auto"
    device_map: DeviceMap | None = None
    dtype: Dtype = "float32"
    batch_size: int | None = None
    threads: int | None = None
    jobs: int = 1
    cache_dir: Path | None = None
    cache: bool = True
    force: bool = False
    fail_fast: bool = False

    def __post_init__(self) -> None:
        """Refuse what no run can mean, whoever wrote it: command line, configuration or notebook."""
        sets = (self.labelled,) if isinstance(self.labelled, str) else tuple(self.labelled)
        object.__setattr__(self, "labelled", sets)  # a notebook may name one, or give a list
        for name in ("limit", "tokens", "context", "batch_size", "threads", "jobs"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SaebenchError(f"{name} is {value!r}: give a whole number above 0, or leave it out")
        if isinstance(self.train_budget, bool) or not 0 <= self.train_budget < math.inf:
            raise SaebenchError(f"train_budget is {self.train_budget!r}: give minutes, or 0 to train nothing")
        if self.max_cost is not None and (isinstance(self.max_cost, bool) or not 0 <= self.max_cost < math.inf):
            raise SaebenchError(f"max_cost is {self.max_cost!r}: give US dollars, or leave it out")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise SaebenchError(f"seed is {self.seed!r}: give a whole number")
        choices = {"packing": Packing, "profile": Profile, "dtype": Dtype}
        if self.device_map is not None:
            choices["device_map"] = DeviceMap
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                raise SaebenchError(
                    f"{name} is {getattr(self, name)!r}{did_you_mean(str(getattr(self, name)), list(get_args(known)))}"
                )


def parse_parameters(pairs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """`task.name=value` strings as nested values; a value is JSON where it parses as JSON, else text."""
    import json

    out: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        task, dot, name = key.partition(".")
        if not (equals and dot and task and name):
            raise SaebenchError(f"-P {pair}: expected task.parameter=value, e.g. -P novel_latents.threshold=0.4")
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        if isinstance(value, float) and not math.isfinite(value):
            raise SaebenchError(f"-P {pair}: the value must be finite")
        out.setdefault(task, {})[name] = value
    return out


def parse_judge_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`name=value` strings as texts by name; the judge says what type each is."""
    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (equals and name):  # not repeated: it may be a key typed in the wrong place
            raise SaebenchError("-J expects name=value, e.g. -J model=NAME")
        out[name] = text
    return out
