"""What every training says before it starts."""

from collections.abc import Mapping

from torch import nn

from cggm.runs.folder import RunFolder
from cggm.runs.options import BalancerConfig


def describe_training(
    lines: Mapping[str, str],
    balancer: BalancerConfig,
    network: nn.Module,
    run: RunFolder,
    *,
    done: int,
    max_epochs: int,
) -> None:
    """Print what is about to run, a line each for data, network, method and output.

    Args:
        lines: What the task has to say, by a word of at most eight letters.
        balancer: The method.
        network: A network with ``encoders``.
        run: Where it writes to.
        done: Epochs that a resumed run has behind it.
        max_epochs: Epochs of the whole run.
    """
    encoders = network.encoders
    assert isinstance(encoders, nn.ModuleDict)
    settings = ", ".join(f"{name}={value}" for name, value in balancer.settings.items())
    lines = {
        **lines,
        "network": f"{lines['network']}, {_millions(network)} parameters",
        "method": f"{balancer.name}({settings}) on {_millions(encoders)} parameters of "
        f"{len(encoders)} encoders ({', '.join(encoders)})",
        "output": str(run.path),
    }
    if done:
        lines["resumed"] = f"after epoch {done} of {max_epochs}"
    print("\n".join(f"{word:<9}{text}" for word, text in lines.items()), flush=True)


def _millions(module: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e6:.3f} M"
