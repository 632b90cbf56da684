"""What a step that is refused leaves to say, and to put back."""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.distributed import world_size

_SHOWN = 16  # samples in a message
_Report = tuple[Sequence[float], Sequence[str]]


class RunningStatistics:
    """A copy of all buffers of some modules, among them BatchNorm's running statistics.

    Args:
        modules: Whose buffers to keep; they may change, but not be replaced.
    """

    def __init__(self, *modules: nn.Module) -> None:
        alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for buffer in nn.ModuleList(modules).buffers():
            alike[buffer.device, buffer.dtype].append(buffer)
        self._pairs = [(held, [b.clone() for b in held]) for held in alike.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy what the buffers hold now."""
        for held, kept in self._pairs:
            torch._foreach_copy_(kept, held)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the buffers what :meth:`keep` found."""
        for held, kept in self._pairs:
            torch._foreach_copy_(held, kept)


def describe_fault(
    losses: Sequence[Tensor],
    samples: Sequence[str],
    parameters: Sequence[nn.Parameter],
    balancer: Balancer,
) -> str:
    """Say what is not finite, and on which samples; all ranks call it together.

    Args:
        losses: Of this rank since the last step.
        samples: Identifiers of the samples of this rank since the last step.
        parameters: With the gradients that were about to be used.
        balancer: The method, bound; its encoders and heads are what a gradient is named after.

    Returns:
        A clause such as ``the loss is nan on the samples a, b``. Samples of ranks whose loss is
        finite are left out where another rank's is not.
    """
    faulty = [float(loss) for loss in losses if not bool(loss.isfinite().all())]
    reports = _of_all_ranks((faulty, samples))
    guilty = [report for report in reports if report[0]]
    if guilty:
        what = f"the loss is {guilty[0][0][0]}"
    else:
        parts = " and of ".join(_faulty_parts(parameters, balancer)) or "the scaled loss"
        what = f"the gradient of {parts} is not finite"
    names = list(dict.fromkeys(name for _, named in guilty or reports for name in named))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} on the samples {', '.join(names[:_SHOWN])}{more}"


def _faulty_parts(parameters: Sequence[nn.Parameter], balancer: Balancer) -> list[str]:
    heads = {} if balancer.heads is None else dict(balancer.heads.items())
    parts = {f"encoder {name}": module for name, module in balancer.binding.encoders.items()}
    parts |= {f"head {name}": module for name, module in heads.items()}
    owner = {id(p): name for name, module in parts.items() for p in module.parameters()}
    faulty = [
        owner.get(id(p), "the rest of the network")
        for p in parameters
        if p.grad is not None and not bool(p.grad.isfinite().all())
    ]
    return list(dict.fromkeys(faulty))


def _of_all_ranks(report: _Report) -> list[_Report]:
    reports = [report] * world_size()
    if world_size() > 1:
        dist.all_gather_object(reports, report)
    return reports
