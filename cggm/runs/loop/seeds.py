"""Seeds and states of every random generator a training draws from."""

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy's legacy generator, and PyTorch on the CPU and all GPUs.

    Equal seeds give equal runs on one machine with one version of everything; some CUDA kernels are
    not deterministic unless ``torch.use_deterministic_algorithms`` is set.

    Args:
        seed: From 0 to 2**32 - 1, what NumPy accepts.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """State of every generator that :func:`seed_everything` seeds.

    Returns:
        Tensors, numbers and lists of them: ``torch.load(weights_only=True)`` reads it.
    """
    version, words, spare = random.getstate()
    name, keys, position, has_spare, numpy_spare = np.random.get_state(legacy=True)
    return {
        "python": [version, torch.tensor(words), spare],
        "numpy": [name, torch.tensor(np.asarray(keys, np.int64)), position, has_spare, numpy_spare],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue every generator where :func:`rng_state` saw it.

    GPUs that exist only here or only there are left out.

    Args:
        state: What :func:`rng_state` returned.
    """
    version, words, spare = state["python"]
    random.setstate((version, tuple(words.tolist()), spare))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, device)
