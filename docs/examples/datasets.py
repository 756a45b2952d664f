"""`--corpus counting:1000`: a thousand documents that count."""

import hashlib

from saebench_meta import DataIdentity, DatasetLoader, hookimpl

saebench_api = 1


def documents(ref, *, split, revision, text_field):
    for start in range(int(ref)):
        yield " ".join(str(n) for n in range(start, start + 20))


def identity(ref, *, split, revision):
    recipe = f"counting v1, {int(ref)} documents of 20 numbers"
    return DataIdentity(ref=f"counting:{ref}", sha256=hashlib.sha256(recipe.encode()).hexdigest())


@hookimpl
def saebench_datasets():
    return {"counting": DatasetLoader(documents, identity, names=("counting:1000",), summary="documents that count")}
