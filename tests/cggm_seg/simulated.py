"""Simulated cases as arrays, in the layout of files."""

from functools import cache

import numpy as np

from cggm_seg.data.cases import MODALITIES
from cggm_seg.simulation.phantom import simulate_case

SHAPE = (60, 60, 39)


@cache
def simulated_case(index):
    """Images in the order of ``MODALITIES`` and classes; every fifth case has no ET."""
    rng = np.random.default_rng([5, index])
    volumes = simulate_case(rng, SHAPE, enhancing=index % 5 != 3)
    classes = np.where(volumes["seg"] == 4, 3, volumes["seg"])
    return [np.asfortranarray(volumes[name]) for name in MODALITIES], np.asfortranarray(classes)
