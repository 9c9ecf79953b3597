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
from tests.stages.report.report_pages import recording_of
from tests.stages.tiny_runs import make_context
from thousandfold.stages.recordings import RECORDING_FILE
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

# The page forbids scripts but its own, so a page around it measures: how wide it is, whether its pictures are
# there, and what a click on a goal does.
MEASURE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<iframe id="inner" style="width: %dpx; height: 900px; border: 0" src="%s"></iframe>
<pre id="found"></pre><script>
document.getElementById("inner").onload = async () => {
  const page = document.getElementById("inner").contentDocument, root = page.documentElement;
  const pictures = [...page.images], charts = [...page.querySelectorAll(".drawing svg")];
  document.getElementById("found").textContent = JSON.stringify({
    scroll: root.scrollWidth, client: root.clientWidth,
    pictures: pictures.length, broken: pictures.filter(each => !each.naturalWidth).length,
    charts: charts.length, flat: charts.filter(each => each.getBoundingClientRect().height < 60).length,
    ground: getComputedStyle(page.body).backgroundColor, ink: getComputedStyle(page.body).color,
    sections: page.querySelectorAll("section h2").length, played: await played(page)});
};
// Waits until the recording is unpacked, clicks at the plan's left, and lets the episode play.
async function played(page) {
  const player = page.querySelector(".player"), pause = ms => new Promise(done => setTimeout(done, ms));
  for (let tries = 0; tries < 50 && !player.matches(".ready, .failed"); tries++) await pause(100);
  const say = name => player.querySelector(name).textContent;
  const field = player.querySelector(".field"), box = field.getBoundingClientRect();
  const dots = field.querySelectorAll(".dot").length;
  const found = {state: player.className, dots, before: say(".clock")};
  const spot = {clientX: box.left + 2, clientY: box.top + box.height / 2};
  field.dispatchEvent(new MouseEvent("click", {bubbles: true, detail: 1, ...spot}));
  found.goal = say(".goal"); found.button = say(".play");
  for (let tries = 0; tries < 50 && say(".clock").startsWith("0.0 s"); tries++) await pause(100);
  found.after = say(".clock");
  const chosen = field.querySelector("[aria-current]");
  found.label = chosen.getAttribute("aria-label");
  chosen.dispatchEvent(new KeyboardEvent("keydown", {bubbles: true, key: "ArrowRight"}));
  found.moved = say(".goal");
  found.width = [player.scrollWidth, player.clientWidth];
  const slider = player.querySelector(".slider");
  slider.value = slider.max;
  slider.dispatchEvent(new Event("input"));
  found.outcome = say(".outcome");
  return found;
}
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
        str(BROWSER), "--headless", "--no-sandbox", "--disable-quic", "--no-first-run",
        "--use-angle=swiftshader", "--enable-unsafe-swiftshader",  # WebGL without a graphics card
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--allow-file-access-from-files", "--enable-logging=stderr", f"--user-data-dir={profile}",
        f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=20000", "--dump-dom",
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
    files = {"strip.png": png(1200, 200), RECORDING_FILE: recording_of(root)}
    chain.add("rendering", ("policy",), {"episodes": 3, "reached": 2}, files)
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
    assert measures["sections"] == 10
    played = measures["played"]
    assert played["state"].split()[:2] == ["player", "ready"] and played["dots"] > 4
    assert played["before"].startswith("0.0 s · ") and played["button"] == "Pause"
    assert played["label"].startswith(played["goal"]) and played["goal"] != played["moved"]
    assert not played["after"].startswith("0.0 s") and played["outcome"].split()[0] in ("reached", "missed")
    assert played["width"][0] <= played["width"][1]
    ground, ink = sum(channels(measures["ground"])), sum(channels(measures["ink"]))
    assert (ground > ink) == (scheme == LIGHT)


def test_a_page_that_is_too_wide_or_asks_the_network_would_be_found_out(page: Path) -> None:
    bad = page.with_name("bad.html")
    outside = '<div style="width: 900px">wide</div><img alt="" src="http://127.0.0.1:9/picture.png">'
    bad.write_text(page.read_text(encoding="utf-8").replace("</main>", f"{outside}</main>"), encoding="utf-8")
    seen = look(bad, PHONE, LIGHT)
    assert seen.measures["scroll"] > PHONE and seen.measures["broken"] == 1
    assert any("Content Security Policy" in line for line in seen.complaints)
