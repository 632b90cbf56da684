"""What every test process begins with."""

import signal

from hypothesis import HealthCheck, settings

# A shell ignores these in a background job (&, nohup), and so would every process that a test
# starts and sends them to: they have to be those of a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A machine that is busy is no fault: examples take as long as they take.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
