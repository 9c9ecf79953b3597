"""The picture of a study: curves with their mean and its interval, under the study's question."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thousandfold.stages.study import results
from thousandfold.stages.study.claims import Training

pytestmark = pytest.mark.pictures


def training(seed: int, successes: list[float]) -> Training:
    steps = [1000.0 * number for number in range(1, len(successes) + 1)]
    curve = {"env_steps": steps, "elapsed_s": [step / 100 for step in steps], "success": successes}
    return Training("deep", "reacher", seed, curve, {"success": successes[-1]})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    figures, original = [], results.house_figure

    @contextmanager
    def recording(*arguments: Any, **options: Any) -> Any:
        with original(*arguments, **options) as figure:
            yield figure
            figures.append(figure)

    monkeypatch.setattr(results, "house_figure", recording)
    return figures


def heading_texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_a_training_that_has_ended_keeps_its_last_success(tmp_path: Path, drawn: list[Any]) -> None:
    trainings = [training(0, [0.0, 1.0]), training(1, [0.0, 0.2, 0.4]), training(2, [0.0, 0.5, 0.7])]
    results.draw_study(tmp_path / "study.png", trainings, "Does depth pay?", ("study-1",))
    by_steps, by_seconds = drawn[0].axes
    *_, mean = by_steps.lines
    assert np.allclose(mean.get_ydata(), [0.0, 1.7 / 3, 2.1 / 3]) and mean.get_xdata()[-1] == 3000
    assert len(by_steps.collections) == 1, "the interval of the mean"
    assert by_steps.get_xlabel() == "environment steps" and by_seconds.get_xlabel() == "seconds of training"
    assert heading_texts(drawn[0]) == ["Does depth pay?", "study-1 · seeds 0 to 2"]


def test_two_trainings_have_no_interval(tmp_path: Path, drawn: list[Any]) -> None:
    trainings = [training(0, [0.0, 1.0]), training(4, [0.0, 0.2])]
    results.draw_study(tmp_path / "study.png", trainings, "Does depth pay?")
    assert not drawn[0].axes[0].collections
    assert heading_texts(drawn[0])[1] == "seeds 0, 4"
