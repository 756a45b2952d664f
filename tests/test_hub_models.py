"""Language models of the hub, for real: its own client and a server on the loopback. And code that comes with them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hub_server import COMMIT, TOKEN, Hub, Repo, serving

from saebench_meta.errors import SaebenchError
from saebench_meta.record import Record
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.store import find_records
from saebench_plugins import huggingface, native

NEXT = "e" * 40
OPEN = """
import json, sys
from saebench_meta.errors import SaebenchError
from saebench_plugins import huggingface
from saebench_plugins.huggingface import load_model, peek_model
for ref, revision in json.loads(sys.argv[1]):
    try:
        said = peek_model(ref, revision=revision).revision
        assert "torch" not in sys.modules or sys.argv[2:]
        if sys.argv[2:]:
            said = [said, load_model(ref, revision=revision).n_layers]
    except SaebenchError as e:
        said = str(e)
    print(json.dumps(said))
"""


def with_code(files: dict[str, bytes], mark: Path, **config: Any) -> dict[str, bytes]:
    """A sound model with a file that leaves a mark if it is run, and a config that asks for it."""
    asks = json.loads(files["config.json"]) | config
    code = f"open({str(mark)!r}, 'w')\nclass OpenELMForCausalLM: pass\n".encode()
    return files | {"config.json": json.dumps(asks).encode(), "modeling_openelm.py": code}


HIDDEN = {"architectures": ["OpenELMForCausalLM"]}
"""An architecture whose file TransformerLens imports whether or not the user trusts it."""
OUTRIGHT = {
    "model_type": "its_own",
    "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "modeling_openelm.OpenELMForCausalLM"),
}


@pytest.fixture(scope="module")
def files(stories_model_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in stories_model_dir.iterdir()}


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("code") / "it ran"


@pytest.fixture(scope="module")
def hub(files: dict[str, bytes], mark: Path, stories: list[str]) -> Iterator[Hub]:
    pickle, corpus = io.BytesIO(), io.BytesIO()
    torch.save({}, pickle)
    pd.DataFrame({"text": stories[:60]}).to_parquet(corpus)
    pickled = {name: data for name, data in files.items() if name != "model.safetensors"}
    repos = {
        "owner/stories": Repo({COMMIT: files, NEXT: files}, {"main": COMMIT, "v1": COMMIT}),
        "owner/pickled": Repo.of(pickled | {"pytorch_model.bin": pickle.getvalue()}),
        "owner/gated": Repo.of(files, gated=True),
        "owner/hidden": Repo.of(with_code(files, mark, **HIDDEN)),
        "owner/outright": Repo.of(with_code(files, mark, **OUTRIGHT)),
        "owner/empty": Repo.of({"README.md": b""}),
        "datasets/owner/tiny": Repo.of({"data/train-00000-of-00001.parquet": corpus.getvalue()}),
    }
    with serving(repos) as server:
        yield server


def opened(hub: Hub, home: Path, *asked: tuple[str, str | None], load: bool = True, **how: Any) -> list[Any]:
    """The commit, and the number of layers if loaded, of each reference, or what the error says."""
    lines = hub.python(OPEN, home, json.dumps(asked), *["load"] * load, **how).splitlines()
    return [json.loads(line) for line in lines]


REFERENCES = {
    ("owner/stories", None): [COMMIT, 5],
    ("owner/stories", "v1"): [COMMIT, 5],
    ("owner/stories", "v9"): "no such revision: give --revision",
    ("owner/stories", "a" * 40): "no such revision",
    ("owner/pickled", None): "has no model.safetensors on the hub, and pickled weights are not opened",
    ("owner/hidden", None): "cannot be opened without code of its own, which is never run",
    ("owner/outright", None): "cannot be opened without code of its own, which is never run",
    ("owner/empty", None): "has no config.json on the hub",
    ("owner/gated", None): "is gated, and this user has no access",
    ("owner/absent", None): "neither here nor on the hub; private ones need `hf auth login`",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def answers(hub: Hub, home: Path) -> dict[Any, Any]:
    return dict(zip(REFERENCES, opened(hub, home, *REFERENCES), strict=True))


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
def test_a_reference_is_opened_at_its_commit_or_says_why_not(
    answers: dict[Any, Any], reference: tuple[str, str | None], mark: Path
) -> None:
    expected = REFERENCES[reference]
    if isinstance(expected, str):
        assert expected in answers[reference]
    else:
        assert answers[reference] == expected
    assert not mark.exists()


def test_offline_what_was_opened_once_is_opened_again(hub: Hub, home: Path, answers: dict[Any, Any]) -> None:
    hub.asked.clear()
    asked = [("owner/stories", None), ("owner/stories", COMMIT), ("owner/pickled", None), ("owner/never", None)]
    *twice, pickled, never = opened(hub, home, *asked, offline=True)
    assert twice == [[COMMIT, 5], [COMMIT, 5]] and hub.asked == []
    assert "cannot be reached" in pickled and "'owner/never' is not on this machine" in never


def test_a_name_is_one_small_file_until_the_model_is_loaded(hub: Hub, tmp_path: Path) -> None:
    hub.asked.clear()
    assert opened(hub, tmp_path, ("owner/stories", None), load=False) == [COMMIT]
    assert {r.split()[1] for r in hub.asked if "/owner/" in r} == {"/owner/stories/resolve/main/config.json"}


def test_a_token_with_access_opens_a_gated_model(hub: Hub, tmp_path: Path) -> None:
    assert opened(hub, tmp_path, ("owner/gated", None), load=False, token=TOKEN) == [COMMIT]
    (said,) = opened(hub, tmp_path / "other", ("owner/gated", None), load=False, token="hf_of_another")
    assert "is gated" in said


@pytest.mark.parametrize("config", [HIDDEN, OUTRIGHT], ids=["hidden", "outright"])
def test_code_in_a_local_folder_is_never_run(files: dict[str, bytes], tmp_path: Path, config: dict[str, Any]) -> None:
    mark, folder = tmp_path / "it ran", tmp_path / "model"
    folder.mkdir()
    for name, data in with_code(files, mark, **config).items():
        (folder / name).write_bytes(data)
    with pytest.raises(SaebenchError, match="without code of its own, which is never run"):
        huggingface.load_model(str(folder))
    assert not mark.exists()


def test_weights_that_would_be_unpickled_are_refused_beside_other_safetensors(
    stories_model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stories_model_dir, folder)
    folder.chmod(0o755)
    (folder / "model.safetensors").rename(folder / "adapter.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(SaebenchError, match=r"has no model\.safetensors.*pickled"):
        huggingface.load_model(str(folder))


# -- whole runs

RUN = "import sys\nfrom saebench_meta.cli import saebench\nsaebench(sys.argv[1:], prog_name='saebench')\n"


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    W = torch.nn.functional.normalize(torch.randn(32, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    site = Site(model="unknown", hook="blocks.2.hook_resid_post")
    info = SAEInfo(name="tiny", site=site, d_in=64, d_sae=32, context_size=32)
    made = SAE(W.T.contiguous(), torch.zeros(32), W, torch.zeros(64), info)
    return native.save(made, tmp_path_factory.mktemp("sae") / "tiny.safetensors")


def run(hub: Hub, home: Path, sae: Path, out: Path, *more: str, offline: bool = False) -> list[dict[str, Any]]:
    given = ["run", "--sae", str(sae), "--model", "owner/stories", "--corpus", "hf:owner/tiny", "--tasks", "core"]
    small = ["--tokens", "500", "--device", "cpu", "--no-cache", "--json", "-o", str(out)]
    printed = hub.python(RUN, home, *given, *small, *more, offline=offline)
    return [json.loads(line) for line in printed.splitlines()]


def the_record(out: Path) -> Record:
    ((_, record),) = find_records(out)
    return record


def test_a_run_names_both_commits_and_without_a_network_is_known_again(hub: Hub, sae: Path, tmp_path: Path) -> None:
    home, out = tmp_path / "hub", tmp_path / "out"
    hub.asked.clear()
    assert run(hub, home, sae, out)[-1]["ok"] == 1
    weights = [request for request in hub.asked if "safetensors" in request]
    assert weights and all(COMMIT in request for request in weights)
    record = the_record(out)
    assert record.model is not None and record.data is not None
    assert (record.model.ref, record.model.revision) == ("owner/stories", COMMIT)
    assert (record.data.ref, record.data.revision, record.data.split) == ("owner/tiny", COMMIT, "train")
    hub.asked.clear()
    assert run(hub, home, sae, out, offline=True)[-1]["kept"] == 1
    assert hub.asked == []
    assert run(hub, home, sae, out, "--revision", "v1", "--data-revision", COMMIT)[-1]["kept"] == 1
    hub.repos["owner/stories"].refs["main"] = NEXT
    try:
        planned = run(hub, home, sae, out, "--dry-run")
    finally:
        hub.repos["owner/stories"].refs["main"] = COMMIT
    assert [unit["id"] for unit in planned] != [record.id]
