"""Settings of the test run, before anything is imported."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Networks here are tiny and tests run side by side: thread pools that wait for one another by spinning
# would make them many times slower. Inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# No test cuts the power: whether a file has reached the disk is not worth waiting for. Processes that a test
# starts wait as always.
os.fsync = lambda descriptor: None

# A shell that starts a test run in the background has it ignore SIGINT, and nohup has it ignore SIGHUP: so
# would every process that a test starts in order to send it one.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


WHITE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
)
"""A picture's file, as PNG."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Leave the drawing out of tests that are not marked `pictures`: it takes longer than most of them.

    The file of a picture is a white pixel there. Processes that a test starts draw as always.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    draw = FigureCanvasAgg.print_png

    def print_png(canvas: FigureCanvasAgg, file: Any, **options: Any) -> None:
        if isinstance(file, str):
            Path(file).write_bytes(WHITE_PIXEL)
        else:  # a memory, of which a page is made
            draw(canvas, file, **options)

    with pytest.MonkeyPatch.context() as patch:
        if not item.get_closest_marker("pictures"):
            patch.setattr(FigureCanvasAgg, "print_png", print_png)
        return (yield)


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
