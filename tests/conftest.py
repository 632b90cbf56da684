"""What every test process begins with."""

import signal

# A shell ignores these in a background job (&, nohup), and so would every process that a test
# starts and sends them to: they have to be those of a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
