"""How many slices fit into memory at once, found out by trying."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from cggm.errors import UserError

logger = logging.getLogger(__name__)


class BatchSize:
    """Slices that are computed at once; a size that was too large is not tried again.

    Args:
        slices: Slices at once to begin with, at least 1.
    """

    def __init__(self, slices: int) -> None:
        self.slices = slices

    def attempt(self, compute: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor | None:
        """Compute a batch, or halve the size where memory is too short for it.

        Args:
            compute: What to do with the batch.
            batch: At most ``slices`` slices, along the first axis.

        Returns:
            What was computed, or ``None`` where memory was short: come again with fewer slices.

        Raises:
            UserError: If memory is too short for a single slice.
        """
        try:
            return compute(batch)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise _too_little(error) from error
        # Out here the error is gone, and with it the tensors that its traceback kept.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.slices = len(batch) // 2
        logger.warning("Memory is short: %d slices at once from here on.", self.slices)
        return None


def _is_out_of_memory(error: RuntimeError) -> bool:
    # Torch has an error of its own for memory of a GPU alone.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _too_little(error: RuntimeError) -> UserError:
    said = str(error).strip().splitlines()[0]
    what = f"Expected memory for one slice at a time, but got: {said}."
    return UserError(what, "Free memory, or compute on another device.")
