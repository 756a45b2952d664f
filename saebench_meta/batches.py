"""Work done batch by batch over a sample, with smaller batches when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from saebench_meta.corpus import Batch, Sample

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class BatchRunner:
    """Runs work on batches of a sample, with half the batch from then on whenever memory runs out.

    Attributes:
        tokens: most tokens in a batch, padding included.
    """

    def __init__(self, tokens: int, notice: Callable[[str], None] | None = None) -> None:
        if tokens < 1:
            raise SaebenchError(f"batch size is {tokens}: give the tokens of one forward pass, or leave it out")
        self.tokens, self._notice = tokens, notice or (lambda _: None)

    def run(self, sample: Sample, work: Callable[[Batch], None], rows: Int[Tensor, " chosen"] | None = None) -> None:
        """Call `work` on batches that cover the sample, or the given rows of it.

        It may be called again on rows whose call ran out of memory.

        Raises:
            SaebenchError: a single row does not fit.
        """
        import torch

        waiting = list(sample.batches(tokens=self.tokens, rows=rows))[::-1]
        while waiting:
            batch = waiting.pop()
            try:
                work(batch)
                continue
            except RuntimeError as e:
                if not is_out_of_memory(e):
                    raise
                self._halve(batch, e)
            # Outside the handler: the exception's traceback held the tensors of the failed pass.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            rows = torch.cat([batch.rows, *(b.rows for b in waiting)])
            waiting = list(sample.batches(tokens=self.tokens, rows=rows))[::-1]

    def _halve(self, batch: Batch, error: RuntimeError) -> None:
        rows, width = batch.tokens.shape
        if rows == 1:
            raise SaebenchError(
                f"out of memory on a single row of {width} tokens: give a smaller --context or another --device"
            ) from error
        self.tokens = max(1, rows * width // 2)
        self._notice(f"out of memory: batches are now {self.tokens} tokens")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the accelerator's or the machine's memory ran out."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
