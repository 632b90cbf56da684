"""Found first by every Python process of the offline test: notes and refuses whatever leaves."""

import os
import sys

_LOCAL = ("127.0.0.1", "::1", "localhost", "")


def _host(event, arguments):
    """The host that an audited call is about, ``None`` for other calls."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        return address[0] if isinstance(address, tuple) else None  # of AF_UNIX it is a path
    return arguments[0] if event in ("socket.getaddrinfo", "socket.gethostbyname") else None


def _refuse(event, arguments):
    if not event.startswith("socket."):
        return
    host = _host(event, arguments)
    host = host.decode() if isinstance(host, bytes) else host
    if host is None or host in _LOCAL:
        return
    with open(os.environ["CGGM_NETWORK_LOG"], "a") as log:
        log.write(f"{event} {host}\n")
    raise ConnectionRefusedError(f"{event} {host}: this process has no network")


if "CGGM_NETWORK_LOG" in os.environ:
    sys.addaudithook(_refuse)
