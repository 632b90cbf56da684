"""A disk that runs full, as a limit on the size of files."""

import resource
from contextlib import contextmanager


@contextmanager
def file_size_limit(size):
    """Writing beyond this many bytes fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
