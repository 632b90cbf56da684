"""A guard for steps that must not wait for the device."""

from torch.utils._python_dispatch import TorchDispatchMode


class NoSynchronization(TorchDispatchMode):
    """Fails on any operation whose result the host must wait for."""

    forbidden = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in self.forbidden, function
        return function(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Counts the times at which the host waits for a number of the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ == "_local_scalar_dense"
        return function(*args, **(kwargs or {}))
