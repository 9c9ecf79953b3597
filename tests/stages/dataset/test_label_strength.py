"""The trial of a critic's choice: what it compares, what it calls weaker, and what it says."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stages.test_best_action import CRITIC, make_trained
from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline.console import Console
from thousandfold.stages.dataset import labels
from thousandfold.stages.dataset.labels import (
    LabelSettings,
    StrengthTrial,
    is_weaker,
    require_strength,
    try_strength,
)
from thousandfold.stages.episodes import Episodes

SETTINGS = LabelSettings(teacher_samples=16)


def outcomes(success: float, time_at_goal: float) -> Episodes:
    """Return 256 episodes of which this share succeeds, each success this long at the goal."""
    reached = np.arange(256) < round(256 * success)
    zeros, places, none = np.zeros(256), np.zeros((256, 2)), np.zeros(256, bool)
    return Episodes(reached, time_at_goal * reached, zeros, zeros, places, places, none, reached, reached)


def trial(success: float, time_at_goal: float) -> StrengthTrial:
    return StrengthTrial(outcomes(0.9, 500), outcomes(success, time_at_goal))


@pytest.mark.parametrize(
    ("success", "time_at_goal", "weaker"),
    [(0.45, 500, True), (0.9, 400, True), (0.9, 500, False), (0.896, 500, False), (1.0, 600, False)],
)
def test_weaker_is_worse_in_success_or_time_beyond_the_interval(
    success: float, time_at_goal: float, weaker: bool
):
    assert is_weaker(trial(success, time_at_goal).results()) == weaker


def test_a_mean_that_never_succeeds_is_no_measure():
    results = StrengthTrial(outcomes(0.0, 0), outcomes(0.0, 0)).results()
    assert results["success_ratio"] is None and not is_weaker(results)


def test_both_sides_run_the_same_episodes_and_one_sample_is_the_mean():
    kept = try_strength(make_trained(), CRITIC, samples=1, scale=1.0, seed=3, episodes=8)
    np.testing.assert_array_equal(kept.mean.final_distance, kept.best.final_distance)
    found = try_strength(make_trained(), CRITIC, samples=8, scale=1.0, seed=3, episodes=8)
    for name in ("start", "goal"):
        np.testing.assert_array_equal(getattr(found.mean, name), getattr(found.best, name))
    np.testing.assert_array_equal(found.mean.final_distance, kept.mean.final_distance)
    assert not np.array_equal(found.mean.final_distance, found.best.final_distance)


def require(settings: LabelSettings, found: StrengthTrial, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setattr(labels, "try_strength", lambda *_, **__: found)
    return require_strength(make_trained(), CRITIC, settings, "cpu", Console())


def test_weaker_labels_are_refused_in_one_line_with_both_figures(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SettingsError) as raised:
        require(SETTINGS, trial(0.45, 500), monkeypatch)
    message = str(raised.value)
    assert "success 0.449" in message and "success 0.898" in message and "\n" not in message
    assert "accept_weaker_labels=true" in message and "best of 16 actions at sample_scale 0.1" in message


def test_weaker_labels_are_taken_when_they_are_accepted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    accepting = SETTINGS.model_copy(update={"accept_weaker_labels": True})
    assert require(accepting, trial(0.45, 500), monkeypatch)["best_success"] == pytest.approx(0.45, abs=0.01)
    assert "weaker labels" in capsys.readouterr().err
    require(SETTINGS, trial(0.9, 500), monkeypatch)
    assert "weaker" not in capsys.readouterr().err
