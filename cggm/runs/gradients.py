"""Last-layer gradients of heads, beside those that each modality alone would give (figure 4)."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.contract import last_weight
from cggm.heads import Criterion
from cggm.runs.folder import RunFolder
from cggm.runs.options import RunConfig
from cggm.runs.storage import replacing
from cggm.tensors import Features, in_eval_mode, zeros_of


class Decomposed(Protocol):
    """A network whose encoders and fusion can be run apart."""

    output_layer: Any

    def encode(self, inputs: Any) -> dict[str, Features]:  # noqa: ANN401
        """What its encoders return, by modality."""

    def decode(self, features: Mapping[str, Any]) -> Tensor:
        """The prediction from what its encoders return."""


def last_layer_gradients(
    network: Decomposed,
    heads: nn.ModuleDict,
    batches: Iterable[tuple[Any, Any]],
    task_loss: Criterion,
) -> dict[str, NDArray[np.float32]]:
    """Last-layer gradients of each head, and of the network when it sees one modality alone.

    The paper (section 4.4, figure 4) takes the former for the latter. All other modalities are
    absent, that is, their features are zeros.

    Args:
        network: The network; nothing of it changes.
        heads: One head per encoder, of the same last-layer shape.
        batches: Network input and target, on the device.
        task_loss: ``(prediction, target)`` to a scalar.

    Returns:
        ``"head <modality>"`` and ``"unimodal <modality>"`` to vectors, one per batch, ``(K, C D)``.
    """
    vectors: dict[str, list[Tensor]] = {f"{k} {m}": [] for m in heads for k in ("head", "unimodal")}
    assert isinstance(network, nn.Module)
    with in_eval_mode(network), in_eval_mode(heads):
        for inputs, target in batches:
            with torch.no_grad():
                features = network.encode(inputs)
            for name, head in heads.items():
                alone = {n: f if n == name else zeros_of(f) for n, f in features.items()}
                weight = last_weight(head.output_layer)  # type: ignore[arg-type]
                found = _gradient(task_loss(head(features[name]), target), weight)
                vectors[f"head {name}"].append(found)
                weight = last_weight(network.output_layer)
                found = _gradient(task_loss(network.decode(alone), target), weight)
                vectors[f"unimodal {name}"].append(found)
    return {name: torch.stack(rows).cpu().numpy() for name, rows in vectors.items()}


def keep_gradients(
    run: RunFolder,
    config: RunConfig,
    network: Decomposed,
    balancer: Balancer,
    batches: Iterable[tuple[Any, Any]],
) -> None:
    """Write what :func:`last_layer_gradients` gives for some batches, where that is asked for.

    A method without heads has none.

    Args:
        run: Gets ``gradients.npz``.
        config: Says for how many batches.
        network: The network.
        balancer: The method, with the heads.
        batches: Network input and target, on the device; no more are drawn than are needed.
    """
    if not config.gradients or balancer.heads is None:
        return
    first = islice(batches, config.gradients)
    vectors = last_layer_gradients(network, balancer.heads, first, balancer.task_loss)
    write_gradients(run.gradients, vectors)


def write_gradients(path: Path, vectors: Mapping[str, NDArray[np.float32]]) -> None:
    """Keep what :func:`last_layer_gradients` gives as a NumPy archive.

    Args:
        path: The file.
        vectors: By name, see there.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **vectors)


def _gradient(loss: Tensor, weight: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, weight)
    return gradient.detach().float().flatten()
