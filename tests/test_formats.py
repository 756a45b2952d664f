"""What is offered without importing a loader is what the loader's own module offers."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from saebench_plugins import formats


@pytest.mark.parametrize("scheme", formats.FORMATS)
def test_what_is_offered_is_what_the_module_offers(scheme: str) -> None:
    module = importlib.import_module(f"saebench_plugins.{formats.FORMATS[scheme][0]}")
    own, offered = module.saebench_loaders(), formats.saebench_loaders()[scheme]
    assert list(own) == [scheme]
    assert (offered.version, offered.summary) == (own[scheme].version, own[scheme].summary)
    for name in ("load", "peek", "claims", "save"):
        assert (getattr(offered, name) is None) == (getattr(own[scheme], name) is None)
        if getattr(own[scheme], name) is not None:
            assert getattr(own[scheme], name) is getattr(module, name)


def test_offering_imports_no_loader() -> None:
    modules = [f"saebench_plugins.{entry[0]}" for entry in formats.FORMATS.values()]
    code = f"""
import sys
from saebench_plugins import formats
loaders = formats.saebench_loaders()
assert not set({modules!r}) & set(sys.modules)
from pathlib import Path
assert loaders["sparsify"].claims(Path("/nowhere")) is False
assert "saebench_plugins.sparsify" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
