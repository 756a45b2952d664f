"""Whether the server can be asked: key, model and address, found out with the cheapest request that tells.

The official server says all of it of one model's entry. Elsewhere the list of models is often open to anybody and
seldom whole: there one answer of a single token tells, and on this machine the list is enough if the model is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError, did_you_mean
from saebench_plugins.judges.openai_dialect import LIMITS
from saebench_plugins.judges.openai_settings import client_options, read_settings, redact
from saebench_plugins.judges.openai_trouble import Trouble, trouble_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from openai import OpenAI

    from saebench_plugins.judges.openai_settings import Settings

LONGEST_SECONDS = 10.0
"""How long the check waits for a server at most."""


def check(options: Mapping[str, Any]) -> None:
    """See that the server takes the key and has the model.

    Raises:
        SaebenchError: what to set, in one line.
    """
    import openai

    settings = read_settings(options)
    key = settings.key()
    # A connection each: some servers drop the one on which they have failed, as with a list that they cannot make.
    own = {"timeout": min(settings.timeout, LONGEST_SECONDS), "default_headers": {"Connection": "close"}}
    http = openai.DefaultHttpxClient(trust_env=not settings.local, follow_redirects=False)
    with openai.OpenAI(**client_options(settings, key) | own, http_client=http) as client:
        _Check(settings, key, client).run()


class _Check:
    def __init__(self, settings: Settings, key: str, client: OpenAI) -> None:
        self.settings, self.key, self.client = settings, key, client

    def run(self) -> None:
        if self.settings.official:
            if trouble := self.tried(lambda: self.client.models.retrieve(self.settings.model)):
                self.explain(trouble, self.listed()[0])
            return
        known, trouble = self.listed()
        if trouble is not None and (trouble.status == 401 or trouble.problem == "unreachable"):
            self.explain(trouble, known)
        if not (self.settings.local and self.settings.model in known) and (trouble := self.tried(self.one_token)):
            self.explain(trouble, known)

    def tried(self, ask: Callable[[], object]) -> Trouble | None:
        try:
            ask()
        except Exception as e:
            return trouble_of(e)
        return None

    def listed(self) -> tuple[list[str], Trouble | None]:
        """Names of the server's models, and why there are none."""
        found: list[object] = []
        trouble = self.tried(lambda: found.append(self.client.get("/models", cast_to=object)))
        entries = found[0].get("data") if found and isinstance(found[0], dict) else None
        entries = entries if isinstance(entries, list) else []
        return [str(e["id"]) for e in entries if isinstance(e, dict) and "id" in e], trouble

    def one_token(self) -> object:
        messages = [{"role": "user", "content": "1"}]
        body = {"model": self.settings.model, "messages": messages, LIMITS[0]: 1}
        return self.client.post("/chat/completions", cast_to=object, body=body)

    def explain(self, trouble: Trouble, known: list[str]) -> None:
        """Say what to set, where it is for the user to set something; that a server is busy is not."""
        s, said = self.settings, redact(trouble.said, self.key)
        if trouble.status in (401, 403):
            whose = f"the key in {s.key_env}" if s.key_env else "to answer without a key"
            raise SaebenchError(
                f"judge openai: {s.place} refuses {whose} ({said}); set {s.key_env or 'a variable'} to a key of this "
                "server, or name another variable with -J key_env="
            )
        if trouble.problem == "unreachable" or (trouble.problem == "timeout" and not known):
            raise SaebenchError(
                f"judge openai: {s.place} cannot be reached; see to the network, or set -J base_url= to the address of "
                "a server, such as http://127.0.0.1:8000/v1"
            )
        if trouble.status == 402 or "quota" in str((trouble.error or {}).get("code")):
            raise SaebenchError(f"judge openai: {s.place} wants to be paid before it answers ({said})")
        if (s.official and trouble.status == 404) or (s.model not in known and _is_about_the_model(trouble, s.model)):
            names = did_you_mean(s.model, known) if known else ""
            raise SaebenchError(f"judge openai: {s.place} has no model '{s.model}'{names} ({said}); set -J model=")
        if trouble.status in (404, 405) or trouble.problem == "unreadable" or 300 <= trouble.status < 400:
            raise SaebenchError(
                f"judge openai: nothing answers chat completions at {s.place}; set -J base_url= (most end in /v1)"
            )


def _is_about_the_model(trouble: Trouble, model: str) -> bool:
    error = trouble.error or {}
    if trouble.status not in (400, 404, 422):
        return False
    return "model" in str(error.get("code")) or error.get("param") == "model" or model in str(error.get("message"))
