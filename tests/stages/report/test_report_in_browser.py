"""The page of a report in a real browser: nothing overflows, nothing is asked of the network, no error."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
from tests.stages.made_up_chain import RETAINED, MadeUpChain, make_chain, png
from tests.stages.tiny_runs import make_context
from thousandfold.stages.report import report
from thousandfold.stages.report.report import REPORT_FILE, ReportSettings
from thousandfold.stages.stage_settings import settings_by_kind

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
PHONE, DESKTOP = 390, 1280
LIGHT, DARK = 1, 0  # of Blink's preferredColorScheme

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed"),
]

# The page forbids scripts, so a page around it measures: how wide it is, and whether its pictures are there.
MEASURE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<iframe id="inner" style="width: %dpx; height: 900px; border: 0" src="%s"></iframe>
<pre id="found"></pre><script>
document.getElementById("inner").onload = () => {
  const page = document.getElementById("inner").contentDocument, root = page.documentElement;
  const pictures = [...page.images], charts = [...page.querySelectorAll(".drawing svg")];
  document.getElementById("found").textContent = JSON.stringify({
    scroll: root.scrollWidth, client: root.clientWidth,
    pictures: pictures.length, broken: pictures.filter(each => !each.naturalWidth).length,
    charts: charts.length, flat: charts.filter(each => each.getBoundingClientRect().height < 60).length,
    ground: getComputedStyle(page.body).backgroundColor, ink: getComputedStyle(page.body).color,
    sections: page.querySelectorAll("section h2").length});
};
</script>"""


@dataclass(frozen=True)
class Seen:
    """What the browser found: its measures, and what it complained of."""

    measures: dict[str, Any]
    complaints: list[str]


def look(page: Path, width: int, scheme: int) -> Seen:
    outer = page.with_name("outer.html")
    outer.write_text(MEASURE % (width, page.name), encoding="utf-8")
    profile = page.with_name("profile")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--allow-file-access-from-files", "--enable-logging=stderr", f"--user-data-dir={profile}",
        f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=8000", "--dump-dom",
        outer.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(json.loads(html.unescape(found.group(1))), complaints)


def channels(colour: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", colour)[:3]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    # A long name without a place to break it is what makes small screens overflow.
    chain: MadeUpChain = make_chain(root, licence="LicenseRef-" + "long" * 60)
    student = {"depth": 4, "width": 64, "parameters": 420, "on_front": True, "p50_us": 5.8, "p99_us": 6.2}
    table = {"teacher": {"depth": 16, "width": 128, "p99_us": 51.4}, "rows": [RETAINED | student]}
    chain.add("frontier", ("teacher", "dataset"), {"students": 1}, {"frontier.json": table})
    chain.add("rendering", ("policy",), {"episodes": 3, "reached": 2}, {"strip.png": png(1200, 200)})
    made = report.run(ReportSettings(), make_context(root), chain.made["policy"], settings_by_kind())
    copy = root / "page.html"
    shutil.copyfile(made.file(REPORT_FILE), copy)
    return copy


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_the_page_fits_and_complains_of_nothing(page: Path, width: int, scheme: int) -> None:
    seen = look(page, width, scheme)
    assert seen.complaints == []
    measures = seen.measures
    assert measures["scroll"] <= measures["client"] <= width
    assert measures["pictures"] >= 8 and measures["broken"] == 0
    assert measures["charts"] >= 7 and measures["flat"] == 0
    assert measures["sections"] == 9
    ground, ink = sum(channels(measures["ground"])), sum(channels(measures["ink"]))
    assert (ground > ink) == (scheme == LIGHT)


def test_a_page_that_is_too_wide_or_asks_the_network_would_be_found_out(page: Path) -> None:
    bad = page.with_name("bad.html")
    outside = '<div style="width: 900px">wide</div><img alt="" src="http://127.0.0.1:9/picture.png">'
    bad.write_text(page.read_text(encoding="utf-8").replace("</main>", f"{outside}</main>"), encoding="utf-8")
    seen = look(bad, PHONE, LIGHT)
    assert seen.measures["scroll"] > PHONE and seen.measures["broken"] == 1
    assert any("Content Security Policy" in line for line in seen.complaints)
