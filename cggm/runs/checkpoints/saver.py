"""The saver of a training: it saves at fixed places, restores, and leaves where a signal asks."""

import errno
import math
import os
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.utils import get_total_norm

from cggm.contract import unwrap
from cggm.distributed import is_first_rank, wait_for_ranks
from cggm.errors import UserError
from cggm.runs.checkpoints.files import find_checkpoints, prune
from cggm.runs.checkpoints.load import load_checkpoint
from cggm.runs.checkpoints.save import RunProgress, Stateful, save_checkpoint
from cggm.runs.folder import RunFolder
from cggm.runs.loop import Stopped, StopSignals, rng_state


@dataclass(frozen=True)
class _HeldState:
    """The state of one part as it was."""

    state: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise NotImplementedError


class Saver:
    """Saves one training, restores it, and leaves it once it is saved.

    Args:
        run: Folder to write to.
        network: The network.
        parts: Everything else with a state, by name.
        flush: Writes what logs hold back, which a resumed run would not write again.
        fingerprint: What must be the same on resume.
        keep_last: Recent checkpoints to keep besides the best.
        minutes: Between checkpoints; 0 saves whenever it is asked.

    Attributes:
        progress: How far the run was when it was last saved or restored.
        signals: Those that ask for the end.
    """

    def __init__(
        self,
        run: RunFolder,
        network: nn.Module,
        parts: Mapping[str, Stateful | None],
        flush: Callable[[], None],
        *,
        fingerprint: Mapping[str, str],
        keep_last: int,
        minutes: float,
    ) -> None:
        self.progress = RunProgress(epoch=0, iteration=0, fingerprint=fingerprint)
        self.signals = StopSignals()
        self._run, self._network, self._parts = run, network, parts
        self._flush, self._keep_last = flush, keep_last
        self._seconds, self._saved_at = 60 * minutes, time.monotonic()
        self._held: tuple[RunProgress, _HeldState, dict[str, _HeldState], dict[str, Any]]

    def restore(self) -> RunProgress:
        """Continue from the last checkpoint; without one the run begins anew.

        Raises:
            UserError: If the checkpoint is damaged or of another run.
        """
        folder = self._run.checkpoints
        if find_checkpoints(folder):
            self.progress = load_checkpoint(
                folder, self._network, self._parts, self.progress.fingerprint
            )
            if is_first_rank():
                prune(folder, self._keep_last)  # a kill may have come between saving and this
        return self.progress

    def save(self, epoch: int, iteration: int, score: float | None = None) -> None:
        """Save, unless the last checkpoint is of the same progress.

        The first rank does, for all of them.

        Raises:
            UserError: If the weights are not finite.
        """
        self._saved_at = time.monotonic()
        if (epoch, iteration) == (self.progress.epoch, self.progress.iteration):
            return
        self.check_weights(iteration)
        self._flush()
        self.progress = replace(self.progress, epoch=epoch, iteration=iteration, score=score)
        if is_first_rank():
            self._write(self._network, self._parts)

    def check_weights(self, iteration: int) -> None:
        """Refuse weights that a step made infinite, which no loss has shown yet.

        Args:
            iteration: The last step.

        Raises:
            UserError: If one of them is not finite.
        """
        weights = dict(unwrap(self._network).named_parameters())
        largest = get_total_norm([w.detach() for w in weights.values()], math.inf)
        if not bool(largest.isfinite()):
            name = next((n for n, w in weights.items() if not bool(w.isfinite().all())), "one")
            raise UserError(
                f"{self._run.path}: weights are not finite after step {iteration}, in {name}.",
                "They were not saved. Start a new run with a lower learning rate.",
            )

    def hold(self, epoch: int, iteration: int) -> None:
        """Keep a copy of everything in memory, on its device, in place of the last such copy."""
        parts = {name: part for name, part in self._parts.items() if part is not None}
        self._held = (
            replace(self.progress, epoch=epoch, iteration=iteration, score=None),
            _HeldState(deepcopy(unwrap(self._network).state_dict())),
            {name: _HeldState(deepcopy(part.state_dict())) for name, part in parts.items()},
            rng_state(),
        )

    def save_held(self) -> int:
        """Save what is held, unless something newer was; returns the completed iterations."""
        progress, network, parts, rng = self._held
        if progress.iteration > self.progress.iteration:
            self.progress = progress
            self._write(network, parts, rng)
        return self.progress.iteration

    def _write(
        self,
        network: nn.Module | Stateful,
        parts: Mapping[str, Stateful | None],
        rng: dict[str, Any] | None = None,
    ) -> None:
        folder = self._run.checkpoints
        if not folder.is_dir():  # moved or removed: what is made anew there is half of a run
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        save_checkpoint(folder, network, parts, self.progress, keep_last=self._keep_last, rng=rng)

    def save_if_due(self, epoch: int, iteration: int) -> None:
        """Save where the last time is long enough ago."""
        if time.monotonic() - self._saved_at >= self._seconds:
            self.save(epoch, iteration)

    def leave_if_requested(self, epoch: int, iteration: int) -> None:
        """Save and end the training if a signal asked for it.

        Raises:
            Stopped: If so.
        """
        number = self.signals.requested()
        if number:
            self.save(epoch, iteration)
            wait_for_ranks()  # torchrun kills all of them soon after one has left
            raise Stopped(number, f"step {iteration}, {epoch} epochs completed", self._run.path)
