"""Settings of the test run, before anything is imported."""

import os

# Networks here are tiny and tests run side by side: thread pools that wait for one another by spinning
# would make them many times slower. Inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
