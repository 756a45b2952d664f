"""`counting:parity`: which of two kinds of numbers a text holds."""

from saebench_meta import DataIdentity, LabelledLoader, LabelledSet, hookimpl

saebench_api = 1


def texts(first):
    """Ten numbers a text, even or odd ones in turn."""
    return tuple(" ".join(str(n) for n in range(start, start + 20, 2)) for start in range(first, first + 200))


def load(ref):
    splits = {"train": texts(0), "test": texts(1000)}
    labels = {split: tuple(int(text.split()[0]) % 2 for text in found) for split, found in splits.items()}
    return LabelledSet(("even", "odd"), texts=splits, labels=labels)


def peek(ref):
    return DataIdentity(ref=f"counting:{ref}", sha256="raise me when the texts change")


@hookimpl
def saebench_labelled():
    return {"counting": LabelledLoader(load, peek=peek, names=("parity",), summary="even and odd numbers")}
