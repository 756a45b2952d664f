"""Damage to files, seeded, and what a loader may do with a damaged file: what all loaders' tests hold against it.

`SAEBENCH_FUZZ=N` raises the number of damaged files a test tries.
"""

from __future__ import annotations

import io
import os
import random
import resource
import subprocess
import sys
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.hookspecs import SAEHeader
from saebench_meta.sae import SAE
from saebench_meta.testing.damage import Sabotage as Sabotage
from saebench_meta.testing.watch import nothing_is_run as nothing_is_run

ALPHABET = b"\x00\xff{}[]()<'\",.:-+019efKMqQRhtuXJ"
"""Bytes that mean something to JSON, to numpy's headers or to a pickle."""

NUMBERS = (b"-1", b"9999999999999", b"null", b"[]", b"1e999", b'"0"', b"{}")
"""What is put in place of a digit."""

MEMORY = 64 << 20
"""Bytes a load may take besides twice what the file declares."""


class Loader(Protocol):
    """A module that opens one format."""

    def load(self, ref: Path) -> SAE: ...

    def peek(self, ref: Path) -> SAEHeader: ...

    def claims(self, path: Path) -> bool: ...


def fuzz_count() -> int:
    """How many damaged files a test tries."""
    return max(100, int(os.environ.get("SAEBENCH_FUZZ", "0")))


# -- damage


def mutations(sound: bytes, *, seed: int) -> Iterator[bytes]:
    """Damaged copies without end: bits flipped, bytes set, numbers replaced, pieces cut, doubled or moved, the end cut.

    Every second one strikes where structure lies: a safetensors header, or one member of an archive, most often its
    pickle, which then gets the right checksum.
    """
    rng = random.Random(seed)
    header = 8 + int.from_bytes(sound[:8], "little")
    hot = range(header) if sound[8:9] == b"{" and header < len(sound) else range(len(sound))
    while True:
        yield _damaged(rng, sound, range(len(sound)))
        yield rezipped(sound, rng) if sound[:2] == b"PK" else _damaged(rng, sound, hot)
        if rng.random() < 0.2:
            yield sound[: rng.choice(hot)]


def rezipped(sound: bytes, rng: random.Random) -> bytes:
    """The archive with one member damaged and all checksums made to fit."""
    parts = members(sound)
    victim = rng.choice([*(name for name in parts if name.endswith(".pkl")), *sorted(n for n in parts if parts[n])])
    parts[victim] = _damaged(rng, parts[victim], range(min(len(parts[victim]), 900)))
    return zipped(parts, zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED)


def _damaged(rng: random.Random, sound: bytes, hot: range) -> bytes:
    raw = bytearray(sound)
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.choice(hot) % max(1, len(raw))
        match rng.randrange(6):
            case 0 | 1:
                raw[place] ^= 1 << rng.randrange(8)
            case 2:
                raw[place] = rng.choice(ALPHABET)
            case 3:
                del raw[place : place + rng.randrange(1, 9)]
            case 4:
                raw[place:place] = raw[place // 2 : place // 2 + rng.randrange(1, 9)]
            case 5:
                digit = next((i for i in range(place, len(raw)) if chr(raw[i]).isdigit()), place)
                raw[digit : digit + 1] = rng.choice(NUMBERS)
        raw = raw or bytearray(b"\x00")
    return bytes(raw)


def members(archive: bytes) -> dict[str, bytes]:
    """The members of a zip archive, in its order."""
    with zipfile.ZipFile(io.BytesIO(archive)) as z:
        return {name: z.read(name) for name in z.namelist()}


def zipped(parts: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of these members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, data in parts.items():
            z.writestr(name, data)
    return out.getvalue()


# -- what a loader may do


def one_error(function: Callable[[Path], Any], path: Path, *said: str, limit: int = 1200) -> str:
    """The function refuses a file with one error that names it, says these words and cannot touch the terminal."""
    with pytest.raises(BadFileError) as caught:
        function(path)
    message = str(caught.value)
    assert str(path) in message and message.isprintable() and len(message) < limit + len(str(path))
    for words in said:
        assert words in message
    return message


def outcome(loader: Loader, ref: Path, *files: Path) -> str:
    """'refused' if `load` and perhaps `peek` give one clear error, 'loaded' if a sound SAE comes out.

    Whatever else they raise is passed on. Fails where either runs, writes or connects to anything.

    Args:
        files: what an error may name besides the reference.
    """
    with nothing_is_run():
        assert isinstance(loader.claims(ref), bool)
        header, sae = (_clear(function, ref, files) for function in (loader.peek, loader.load))
    if sae is None:
        return "refused"
    assert header is not None and header.info == sae.info
    weights = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, *([] if sae.threshold is None else [sae.threshold])]
    assert all(bool(tensor.isfinite().all()) for tensor in weights)
    assert sae.encode(torch.ones(2, sae.d_in)).shape == (2, sae.d_sae)
    return "loaded"


def fuzz(loader: Loader, ref: Path, *files: Path, seed: int) -> None:
    """Damage the files of a sound SAE in turn, one at a time, and hold every outcome against `outcome`.

    A load that never ends is ended by the time limit that all tests have.
    """
    sound = {file: file.read_bytes() for file in files}
    damaged = {file: mutations(raw, seed=seed) for file, raw in sound.items()}
    assert outcome(loader, ref) == "loaded"
    before, count, counts = peak_memory(), fuzz_count(), Counter[str]()
    for trial in range(count):
        victim = files[trial % len(files)]
        victim.write_bytes(next(damaged[victim]))
        counts[outcome(loader, ref, *files)] += 1
        victim.write_bytes(sound[victim])
    assert peak_memory() - before < MEMORY
    assert counts["refused"] > count // 4 and counts["loaded"] > count // 50, counts


def _clear(function: Callable[[Path], Any], ref: Path, files: tuple[Path, ...]) -> Any:
    try:
        return function(ref)
    except SaebenchError as e:
        assert any(str(path) in str(e) for path in (ref, *files))
        assert str(e).isprintable() and len(str(e)) < 1500 + len(str(ref))
        return None


# -- memory


@contextmanager
def little_memory(most: int = 8 << 20) -> Iterator[None]:
    """Fails where Python objects and buffers come to more bytes than this; torch's own memory is not counted."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most


def peak_memory() -> int:
    """Bytes of memory this process held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


MEASURE = """
import contextlib, importlib, sys, torch
from pathlib import Path
from saebench_meta.errors import SaebenchError
torch.set_num_threads(1)
loader = importlib.import_module(sys.argv[1])
def status(key): return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024
loader.load(Path(sys.argv[2]))
with contextlib.suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = max(status("VmRSS"), status("VmHWM"))
with contextlib.suppress(SaebenchError):
    kept = loader.load(Path(sys.argv[3]))
print(status("VmHWM") - before)
"""


def extra_memory(module: str, small: Path, large: Path) -> int:
    """Bytes that loading takes at its peak, or being refused, in a process of its own that has loaded a small SAE.

    The peak is that of the process's own pages: what `getrusage` tells begins with the peak of the process that started
    it, which would hide everything.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    command = [sys.executable, "-c", MEASURE, module, str(small), str(large)]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout)
