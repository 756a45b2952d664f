"""A server on loopback that speaks the protocol of chat completions, counts what it is asked, bills, and misbehaves.

A question's first line is its name: what goes wrong with it depends on the name and on how often it was asked.
"""

from __future__ import annotations

import json
import random
import select
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from saebench_meta.judge_cache import AnswerCache
from saebench_meta.judging import Judge, JudgeServices, Price, Request
from saebench_meta.purse import Purse
from saebench_plugins.judges.openai import LOADER

OPTIONS = ("rivers", "stones", "birds", "metals", "winds")
FAULTS = ("429", "500", "hang", "cut", "garbled", "empty", "malformed", "refusal")
PRICE = Price(2.0, 8.0)
SERVED = "tiny-judge-2026-11-01"
KEY = "sk-test-Zq7Yk0SECRETw3"
Refuse = Callable[[dict[str, Any]], "tuple[int, dict[str, Any]] | None"]


def question(n: int, max_tokens: int = 16) -> Request:
    """The n-th question: which of five."""
    listed = "\n".join(f"{i}. {option}" for i, option in enumerate(OPTIONS, 1))
    return Request("choose", "You choose.", f"question {n}\n{listed}", OPTIONS, max_tokens=max_tokens)


def right(name: str) -> int:
    """What the server answers to a question, as an index from 0."""
    return zlib.crc32(name.encode()) % len(OPTIONS)


def seeded_faults(share: float, seed: int = 0) -> Callable[[str, int], str | None]:
    """Something goes wrong with this share of all attempts, each kind as often as the others."""

    def fault(name: str, attempt: int) -> str | None:
        drawn = random.Random(f"{seed} {name} {attempt}")
        return drawn.choice(FAULTS) if drawn.random() < share else None

    return fault


def always(kind: str) -> Callable[[str, int], str | None]:
    return lambda name, attempt: kind


@dataclass
class JudgeServer:
    """What the server does, and what it has seen.

    Attributes:
        key: that it wants; None for none.
        models: that it lists; None where it has no list.
        fault: name of a question and how often it was asked before -> a kind of fault, or None.
        refuses: a body -> the status and error it is refused with, or None.
        content: a body and the name of its question -> what the model writes; None for the right option's number.
        headers: sent with a 429.
        work_seconds: how long it thinks.
        served: the model that it says it used.
        completion_tokens: of an answer; None for as many as it may have.
        usage: whether it says how many tokens there were.
        on_request: called with the number of requests so far, one at a time.
        asked: how often each question came.
        bodies, arrivals, paths: of every request for a completion, when it came, and where all of them went.
        most_at_once: how many it worked on at a time.
        bill: US dollars for what it worked on, at `PRICE`; an attempt that hangs is billed as if it were answered.
    """

    key: str | None = None
    models: list[str] | None = field(default_factory=lambda: ["tiny-judge"])
    fault: Callable[[str, int], str | None] = lambda name, attempt: None
    refuses: Refuse = lambda body: None
    content: Callable[[dict[str, Any], str], str] | None = None
    headers: dict[str, str] = field(default_factory=lambda: {"Retry-After": "0.02"})
    work_seconds: float = 0.002
    served: str = SERVED
    completion_tokens: int | None = None
    usage: bool = True
    on_request: Callable[[int], None] = lambda n: None
    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most_at_once: int = 0
    bill: float = 0.0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def charge(self, body: dict[str, Any], completion_tokens: int) -> dict[str, int]:
        """Bill a completion: a token for every byte of the prompt and some for what stands between the messages."""
        prompt = sum(len(m["content"].encode()) + 8 for m in body["messages"])
        prompt += len(json.dumps(body.get("response_format", "")))
        with self.lock:
            self.bill += PRICE.of(prompt, completion_tokens)
        return {"prompt_tokens": prompt, "completion_tokens": completion_tokens, "total_tokens": prompt + 1}


def options_for(server: JudgeServer, **options: Any) -> dict[str, Any]:
    """Options of a judge that asks this server, at its prices."""
    prices = {"price_in": PRICE.prompt, "price_out": PRICE.completion}
    return {**LOADER.options, "base_url": server.url, "model": "tiny-judge", "timeout": 10.0} | prices | options


def judge_at(
    server: JudgeServer, folder: Path, limit: float | None = None, warned: list[str] | None = None, **options: Any
) -> tuple[Judge, Purse]:
    """A judge that asks this server and keeps its answers in a folder, with the purse it pays from."""
    purse, warn = Purse(limit), ([] if warned is None else warned).append
    services = JudgeServices(AnswerCache(folder / "answers.sqlite", warn), purse, lambda done, total: None, warn)
    return LOADER.make(options_for(server, **options), services), purse


@contextmanager
def serving(server: JudgeServer) -> Iterator[JudgeServer]:
    """Serve while the context lasts."""
    http = _Http(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_": server}))
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


class _Http(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: clients that give up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server_: JudgeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        s = self.server_
        s.paths.append(self.path)
        if not self.has_key():
            return self.refuse_key()
        if s.models is None or not self.path.startswith("/v1/models"):
            return self.give(404, {"detail": "Not Found"})
        listed = [{"id": m, "object": "model"} for m in s.models]
        if name := self.path.removeprefix("/v1/models").strip("/"):
            if name in s.models:
                return self.give(200, {"id": name, "object": "model"})
            return self.give(404, _error(f"The model '{name}' does not exist", "model_not_found", "model"))
        return self.give(200, {"object": "list", "data": listed})

    def do_POST(self) -> None:
        s = self.server_
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        s.paths.append(self.path)
        if not self.path.endswith("/v1/chat/completions"):
            return self.give(404, {"detail": "Not Found"})
        if not self.has_key():
            return self.refuse_key()
        with s.lock:
            name = body["messages"][-1]["content"].partition("\n")[0]
            attempt, s.asked[name] = s.asked[name], s.asked[name] + 1
            s.bodies.append(body)
            s.arrivals.append(time.monotonic())
            s.at_once += 1
            s.most_at_once = max(s.most_at_once, s.at_once)
            s.on_request(len(s.bodies))
        time.sleep(s.work_seconds)
        with s.lock:  # before the reply, which the client may answer with the next request
            s.at_once -= 1
        if (refused := s.refuses(body)) is not None:
            return self.give(*refused)
        return self.reply(body, name, s.fault(name, attempt))

    def reply(self, body: dict[str, Any], name: str, fault: str | None) -> None:
        s = self.server_
        if fault == "429":
            return self.give(429, _error("Rate limit reached", "rate_limit_exceeded"), s.headers)
        if fault == "500":
            return self.give(500, _error("The server had an error", None))
        longest = body.get("max_tokens", body.get("max_completion_tokens", 0))
        hangs = fault == "hang"
        usage = s.charge(body, longest if hangs or s.completion_tokens is None else s.completion_tokens)
        if hangs:  # until the client has gone
            self.close_connection = True
            select.select([self.connection], [], [], 20)
            return None
        message: dict[str, Any] = {"role": "assistant", "content": self.words(body, name), "refusal": None}
        if fault in ("empty", "malformed"):
            message["content"] = "" if fault == "empty" else "Either 1 or 2, I would say."
        if fault == "refusal":
            message |= {"content": None, "refusal": "I cannot help with that."}
        finish = fault if fault in ("length", "content_filter") else "stop"
        choice = {"index": 0, "message": message, "finish_reason": finish}
        completion = {"id": "c", "object": "chat.completion", "created": 0, "model": s.served, "choices": [choice]}
        data = json.dumps(completion | ({"usage": usage} if s.usage else {})).encode()
        if fault == "garbled":
            data = data[: len(data) // 2]
        return self.send(200, data, cut=fault == "cut")

    def words(self, body: dict[str, Any], name: str) -> str:
        if self.server_.content is not None:
            return self.server_.content(body, name)
        number = right(name) + 1
        return json.dumps({"answer": number}) if "response_format" in body else str(number)

    def has_key(self) -> bool:
        return self.server_.key is None or self.headers.get("Authorization") == f"Bearer {self.server_.key}"

    def refuse_key(self) -> None:
        given = self.headers.get("Authorization", "")
        self.give(401, _error(f"Incorrect API key provided: {given}", "invalid_api_key"))

    def give(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(body).encode(), headers)

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Silent."""


def _error(message: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """An error as the official server words it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
