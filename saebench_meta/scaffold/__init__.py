"""`saebench new plugin`: a package that installs, passes its own tests, and is to be changed into what it should be.

The templates are the files in `plugin/`, as they come out but for names in braces.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    from saebench_meta.plugins import Registry

Kind = Literal["loader", "task", "judge", "architecture"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TEMPLATES = Path(__file__).parent / "plugin"
LONGEST = 40
DOTTED = ("gitignore", "github")
"""Templates whose files begin with a dot."""


@dataclass(frozen=True)
class Names:
    """What a new package is called.

    Attributes:
        distribution: as it is installed.
        module: as it is imported.
        short: what it offers is called: `--tasks SHORT`, `--sae SHORT:…`.
    """

    distribution: str
    module: str
    short: str


def names_of(name: str) -> Names:
    """The names of a package called `name`.

    Raises:
        SaebenchError: no package can be called that, or one is.
    """
    if len(name) > LONGEST or not re.fullmatch(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise SaebenchError(
            f"no package can be called '{name}': give letters, digits, '-', '_' and '.', at most {LONGEST}, a letter "
            "first, e.g. my-sae-task"
        )
    module = re.sub(r"[-_.]+", "_", name).lower()
    if keyword.iskeyword(module) or module in sys.stdlib_module_names:
        raise SaebenchError(f"'{module}' means something to Python: give another name, e.g. {name}-sae")
    if importlib.util.find_spec(module) is not None:
        raise SaebenchError(f"a package '{module}' is installed here already: give another name, e.g. my-{name}")
    short = module.removeprefix("saebench_")
    return Names(name, module, module if keyword.iskeyword(short) or not short.isidentifier() else short)


def check_free(registry: Registry, names: Names, kinds: Sequence[Kind]) -> None:
    """Refuse a name that a plugin offers already: two of one name are an error of both.

    Raises:
        SaebenchError: as said.
    """
    for kind in kinds:
        if names.short in getattr(registry, f"{kind}s"):
            owner = getattr(registry, f"{kind}s").owner(names.short)
            raise SaebenchError(
                f"there is a {kind} '{names.short}' already, of plugin '{owner.name}' ({owner.distribution}): "
                "give another name"
            )


def files(names: Names, kinds: Sequence[Kind]) -> dict[Path, str]:
    """The package's files, by their path in its folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # no page is made of these
    )
    made = {}
    for template in sorted(TEMPLATES.rglob("*.jinja")):
        inside = template.relative_to(TEMPLATES)
        about = template.name.partition(".")[0].removeprefix("test_")
        if about in KINDS and about not in kinds:
            continue
        text = environment.get_template(inside.as_posix()).render(
            name=names.distribution, module=names.module, short=names.short, kinds=tuple(k for k in KINDS if k in kinds)
        )
        made[_target(inside, names)] = text
    return made


def _target(template: Path, names: Names) -> Path:
    first, *rest = template.with_suffix("").parts
    first = names.module if first == "module" else f".{first}" if first in DOTTED else first
    return Path(first, *rest)


def write(folder: Path, made: dict[Path, str]) -> None:
    """Write a package's files into a new folder, as a whole or not at all.

    Raises:
        SaebenchError: the folder is there, or the disk refuses.
    """
    if folder.exists():
        raise SaebenchError(f"'{folder}' is there already: give another name, or another folder with -o")
    staging = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    try:
        for path, text in made.items():
            target = staging / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        staging.rename(folder)
    except OSError as e:
        raise SaebenchError(f"'{folder}' cannot be written: {e.strerror or e}. Give another folder with -o.") from e
    finally:
        shutil.rmtree(staging, ignore_errors=True)
