"""Settings of the test run, before anything is imported."""

import os
import signal

# Networks here are tiny and tests run side by side: thread pools that wait for one another by spinning
# would make them many times slower. Inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that starts a test run in the background has it ignore SIGINT, and so would every process that a
# test starts in order to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
