"""Settings of the test run, before anything is imported."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

# Networks here are tiny and tests run side by side: thread pools that wait for one another by spinning
# would make them many times slower. Inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that starts a test run in the background has it ignore SIGINT, and nohup has it ignore SIGHUP: so
# would every process that a test starts in order to send it one.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the Node runner of examples/deploy with its packages installed."""
    from tests.examples.deploy_runners import install_node_runner

    return install_node_runner(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="session")
def cpp_runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ runner of examples/deploy, built."""
    from tests.examples.deploy_runners import build_cpp_runner

    return build_cpp_runner(tmp_path_factory.mktemp("cpp"))


@pytest.fixture(scope="session")
def comma_locale(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which de_DE.UTF-8 can be set: the system's own, or made by localedef."""
    from tests.examples.deploy_runners import required, started

    places = tmp_path_factory.mktemp("locales")
    listed = started("locale", "-a").stdout.lower() if shutil.which("locale") else ""
    if "de_de.utf8" in listed or "de_de.utf-8" in listed:
        return {}
    required("localedef")
    made = started("localedef", "-i", "de_DE", "-f", "UTF-8", places / "de_DE.UTF-8")
    if not (places / "de_DE.UTF-8/LC_NUMERIC").is_file():
        pytest.skip(f"localedef makes no German locale: {made.stderr.strip()}")
    return {"LOCPATH": str(places)}
