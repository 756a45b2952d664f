"""Options of the judge `openai`: what they mean, what the answers depend on, the key, and what tokens cost."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from saebench_meta.errors import SaebenchError
from saebench_meta.judging import Price

OFFICIAL = "https://api.openai.com/v1"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
STRUCTURED = ("auto", "json_schema", "json_object", "none")
NO_KEY = "none"
"""What a server that wants no key is sent: the client insists on one."""

OPTIONS: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "base_url": "",
    "key_env": "OPENAI_API_KEY",
    "concurrency": 8,
    "requests_per_minute": 0.0,
    "timeout": 60.0,
    "retries": 6,
    "temperature": 0.0,
    "seed": 0,
    "structured": "auto",
    "reasoning_effort": "",
    "reasoning_tokens": 0,
    "price_in": -1.0,
    "price_out": -1.0,
}

PRICES_NOTED = "2026-11-21"
"""Standard prices, from lists published between March and September 2026. Models whose price was still moving are left
out: -J price_in= and -J price_out= give theirs."""
PRICES = {
    "gpt-4o-mini": Price(0.15, 0.60),
    "gpt-4o": Price(2.50, 10.00),
    "gpt-4.1": Price(2.00, 8.00),
    "gpt-4.1-mini": Price(0.40, 1.60),
    "gpt-4.1-nano": Price(0.10, 0.40),
    "gpt-5": Price(1.25, 10.00),
    "gpt-5-mini": Price(0.25, 2.00),
    "gpt-5-nano": Price(0.05, 0.40),
    "gpt-5.1": Price(1.25, 10.00),
    "gpt-5.2": Price(1.75, 14.00),
    "gpt-5.4": Price(2.50, 15.00),
    "gpt-5.4-mini": Price(0.75, 4.50),
    "gpt-5.4-nano": Price(0.20, 1.25),
    "gpt-5.5": Price(5.00, 30.00),
    "o3": Price(2.00, 8.00),
    "o3-mini": Price(1.10, 4.40),
    "o4-mini": Price(1.10, 4.40),
}
_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_KEY_LIKE = re.compile(r"\b(sk|Bearer)[-_ ][\w*.-]{6,}")


@dataclass(frozen=True)
class Settings:
    """The options, checked, with every base URL spelt out. Holds no key."""

    model: str
    base_url: str
    key_env: str
    concurrency: int
    requests_per_minute: float
    timeout: float
    retries: int
    temperature: float
    seed: int
    structured: str
    reasoning_effort: str
    reasoning_tokens: int
    price_in: float
    price_out: float

    @property
    def official(self) -> bool:
        return urlsplit(self.base_url).hostname == urlsplit(OFFICIAL).hostname

    @property
    def local(self) -> bool:
        """Whether the server runs on this machine: it needs no key and costs nothing."""
        return urlsplit(self.base_url).hostname in LOCAL_HOSTS

    @property
    def place(self) -> str:
        """Host and path, for records and messages."""
        url = urlsplit(self.base_url)
        return url.netloc + url.path

    @property
    def price(self) -> Price | None:
        """US dollars for a million tokens: as given, from the table, 0 on this machine, or unknown."""
        if self.price_in >= 0:
            return Price(self.price_in, self.price_out)
        if self.local:
            return Price(0.0, 0.0)
        return PRICES.get(_SNAPSHOT.sub("", self.model)) if self.official else None

    def key(self) -> str:
        """The key, from the environment variable that the options name.

        Raises:
            SaebenchError: the variable is not set, and the server needs a key.
        """
        found = os.environ.get(self.key_env, "").strip() if self.key_env else ""
        if found and not (found.isascii() and found.isprintable() and " " not in found):
            raise SaebenchError(f"judge openai: what {self.key_env} holds is no key; set it to the key alone")
        if found or self.local or not self.key_env:
            return found or NO_KEY
        raise SaebenchError(
            f"judge openai: no key for {self.place}; set {self.key_env}, or name another variable with -J key_env="
        )


def read_settings(options: Mapping[str, Any]) -> Settings:
    """Settings from options, missing ones at their defaults.

    Raises:
        SaebenchError: names the option and what it may be.
    """
    given = OPTIONS | dict(options)
    settings = Settings(**given | {"base_url": _url(given["base_url"])})
    for name, least in (("concurrency", 1), ("retries", 0), ("reasoning_tokens", 0), ("requests_per_minute", 0)):
        if not getattr(settings, name) >= least:
            raise SaebenchError(f"judge openai: -J {name}={given[name]} is less than {least}")
    if not settings.timeout > 0:
        raise SaebenchError(f"judge openai: -J timeout={settings.timeout} is no number of seconds above 0")
    if not settings.model.strip():
        raise SaebenchError("judge openai: -J model= is empty; name a model of the server")
    if settings.structured not in STRUCTURED:
        raise SaebenchError(f"judge openai: -J structured={settings.structured} is none of {', '.join(STRUCTURED)}")
    if (settings.price_in >= 0) != (settings.price_out >= 0):
        raise SaebenchError("judge openai: give both -J price_in= and -J price_out=, in US dollars per million tokens")
    return settings


def _url(given: str) -> str:
    """A base URL without a trailing slash; the official one where none is given."""
    if not given:
        return OFFICIAL
    try:
        url = urlsplit(given)
        port_is_fine = url.port is None or url.port > 0
    except ValueError:
        url, port_is_fine = urlsplit(""), False
    if "@" in url.netloc or url.query or url.fragment:
        raise SaebenchError(
            "judge openai: -J base_url= holds a user, a query or a fragment, where a secret would be written down; "
            "put the key into an environment variable and name it with -J key_env="
        )
    if url.scheme not in ("http", "https") or not url.hostname or not port_is_fine:
        raise SaebenchError("judge openai: -J base_url= is no address such as http://127.0.0.1:8000/v1")
    return given.rstrip("/")


def identity(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of the options the answers depend on."""
    s = read_settings(options)
    found = {"model": s.model, "base_url": s.place, "temperature": s.temperature, "seed": s.seed}
    thinking = {"reasoning_effort": s.reasoning_effort, "reasoning_tokens": s.reasoning_tokens}
    return found | {"structured": s.structured} | {name: value for name, value in thinking.items() if value}


def price(options: Mapping[str, Any]) -> Price | None:
    """US dollars for a million tokens; None where it is not known."""
    return read_settings(options).price


def client_options(settings: Settings, key: str) -> dict[str, Any]:
    """How the official client is made. It never asks again by itself."""
    return {"api_key": key, "base_url": settings.base_url, "timeout": settings.timeout, "max_retries": 0}


def without_key(text: str, key: str) -> str:
    """A text from outside without the key: a server might send it back."""
    return text if key == NO_KEY else text.replace(key, "***")


def redact(text: str, key: str) -> str:
    """A text from outside for a message: without the key or what looks like one, on one line of bounded length."""
    text = " ".join(_KEY_LIKE.sub(r"\1-***", without_key(text, key)).split())
    return text if len(text) <= 300 else f"{text[:300]}…"
