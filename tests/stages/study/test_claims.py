"""What a claim says, and what trainings say of it."""

from __future__ import annotations

import numpy as np
import pytest

from thousandfold.ground.errors import SettingsError
from thousandfold.stages.study.claims import (
    Claim,
    Moment,
    Training,
    estimate_difference,
    estimate_mean,
    judge,
    read_claim,
)

ARMS, TASKS = ("deep", "shallow"), ("reacher", "ant")


def read(text: str) -> Claim:
    return read_claim(text, ARMS, TASKS)


def training(arm: str, seed: int, final: float, task: str = "reacher", rate: float = 1.0) -> Training:
    """A training that rises in a line from 0 at step 100 to `final` at step 1100, in `rate` s a step."""
    steps = [100.0, 600.0, 1100.0]
    curve = {
        "env_steps": steps,
        "elapsed_s": [rate * step for step in steps],
        "success": [0.0, final / 2, final],
        "time_at_goal": [0.0, 500 * final, 1000 * final],
    }
    return Training(arm, task, seed, curve, {"success": final, "time_at_goal": 1000 * final})


def both(deep: list[float], shallow: list[float], rate: float = 1.0) -> list[Training]:
    made = [training("deep", seed, final, rate=rate) for seed, final in enumerate(deep)]
    return made + [training("shallow", seed, final) for seed, final in enumerate(shallow)]


class TestReading:
    def test_a_comparison(self) -> None:
        text = "deep reaches more than shallow of success at the end"
        assert read(text) == Claim(text, "deep", "success", "shallow", moment=Moment("end"))

    @pytest.mark.parametrize(
        ("words", "moment"),
        [
            ("at equal seconds", Moment("equal seconds")),
            ("after 500,000 steps", Moment("env_steps", 500_000)),
            ("after 5e5 steps", Moment("env_steps", 500_000)),
            ("after 90 seconds", Moment("elapsed_s", 90)),
            ("after 1.5 minutes.", Moment("elapsed_s", 90)),
        ],
    )
    def test_a_moment(self, words: str, moment: Moment) -> None:
        assert read(f"deep reaches at least 0.95 of time_at_goal {words}").moment == moment

    def test_a_bound_on_one_task(self) -> None:
        claim = read("deep reaches at least 0.95 of success after 10 minutes on ant")
        assert (claim.least, claim.task, claim.other) == (0.95, "ant", None)
        assert claim.moment == Moment("elapsed_s", 600)

    def test_an_arm_may_be_called_by_a_number(self) -> None:
        claim = read_claim("16 reaches at least 0.95 of success at the end", ("4", "16"), TASKS)
        assert (claim.arm, claim.least) == ("16", 0.95)
        claim = read_claim("16 needs fewer steps than 4 to reach 0.8 of success", ("4", "16"), TASKS)
        assert (claim.arm, claim.other, claim.least) == ("16", "4", 0.8)

    def test_what_it_takes(self) -> None:
        claim = read("deep needs fewer seconds than shallow to reach 0.8 of success")
        assert (claim.least, claim.unit, claim.moment) == (0.8, "seconds", None)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("deep is better", "is none of these: ARM reaches more than"),
            ("deep reaches more than shalow of success at the end", "did you mean 'shallow'"),
            ("deep reaches more than shallow of succes at the end", "did you mean 'success'"),
            ("deep reaches more than shallow of success at the end on ants", "did you mean 'ant'"),
            ("deep reaches more than shallow of success after ten steps", "is none of these"),
        ],
    )
    def test_anything_else_is_refused_in_one_line(self, text: str, message: str) -> None:
        with pytest.raises(SettingsError) as caught:
            read(text)
        assert message in str(caught.value) and "\n" not in str(caught.value)


class TestVerdict:
    MORE = "deep reaches more than shallow of success at the end"

    def test_more_is_shown_contradicted_or_neither(self) -> None:
        high, low = [0.8, 0.85, 0.9, 0.95, 0.9], [0.2, 0.3, 0.25, 0.4, 0.3]
        found = judge(read(self.MORE), both(high, low))
        assert found.verdict == "shown"
        assert found.estimate == pytest.approx(np.mean([0.85, 0.9, 0.9]) - np.mean([0.25, 0.3, 0.3]))
        assert found.interval is not None and found.interval[0] > 0.3
        assert judge(read(self.MORE), both(low, high)).verdict == "contradicted"
        wide = [0.1, 0.9, 0.5, 0.3, 0.7]
        assert judge(read(self.MORE), both(wide, wide[::-1])).verdict == "not shown"

    def test_two_seeds_show_nothing(self) -> None:
        found = judge(read(self.MORE), both([0.9, 0.9], [0.1, 0.1, 0.1]))
        assert (found.verdict, found.interval) == ("not shown", None)
        assert found.reason == "deep has fewer than 3 seeds on reacher"

    def test_an_arm_without_trainings_shows_nothing(self) -> None:
        found = judge(read(self.MORE), both([0.9] * 3, []))
        assert (found.verdict, found.reason) == ("not shown", "no training of shallow is done")

    def test_a_bound(self) -> None:
        claim = read("deep reaches at least 0.8 of success at the end")
        assert judge(claim, both([0.8, 0.8, 0.8], [])).verdict == "shown"
        assert judge(claim, both([0.7, 0.75, 0.79], [])).verdict == "contradicted"
        assert judge(claim, both([0.7, 0.8, 0.9], [])).verdict == "not shown"

    def test_a_moment_is_read_from_the_line_between_evaluations(self) -> None:
        found = judge(read("deep reaches at least 0.2 of success after 350 steps"), both([0.8] * 3, []))
        assert found.estimate == pytest.approx(0.2) and found.verdict == "shown"

    def test_a_moment_after_the_end_shows_nothing(self) -> None:
        found = judge(read("deep reaches at least 0.2 of success after 2000 steps"), both([0.8] * 3, []))
        assert found.reason == "a training of deep was not evaluated around 2,000 steps"

    def test_equal_seconds_end_with_the_first_training(self) -> None:
        """Deep takes twice as long a step: when shallow ends at 1100 s, deep is at step 550."""
        claim = read("deep reaches more than shallow of success at equal seconds")
        found = judge(claim, both([0.8] * 3, [0.5] * 3, rate=2.0))
        assert found.estimate == pytest.approx(0.8 * 450 / 1000 - 0.5)
        assert found.verdict == "contradicted"

    def test_what_it_takes_to_reach_a_score(self) -> None:
        claim = read("deep needs fewer steps than shallow to reach 0.4 of success")
        found = judge(claim, both([0.8] * 3, [0.4] * 3))
        assert (found.verdict, found.estimate) == ("shown", -500.0)
        never = judge(claim, both([0.8] * 3, [0.1] * 3))  # taken at its end
        assert never.estimate == -500.0

    def test_a_task_alone(self) -> None:
        trainings = both([0.9] * 3, [0.1] * 3)
        trainings += [training(arm, seed, 0.5, task="ant") for arm in ARMS for seed in range(3)]
        assert judge(read(f"{self.MORE} on reacher"), trainings).estimate == pytest.approx(0.8)
        assert judge(read(f"{self.MORE} on ant"), trainings).verdict == "not shown"


class TestEstimates:
    def test_the_middle_half_counts(self) -> None:
        scores = [np.array([0.0, 0.5, 0.6, 1.0]), np.array([0.5, 0.5, 0.6, 0.6])]
        assert estimate_mean(scores)[0] == pytest.approx(np.mean([0.5, 0.5, 0.6, 0.6]))

    def test_seeds_are_drawn_within_their_task(self) -> None:
        """Two tasks, each the same for every seed: nothing varies, however they differ from one another."""
        scores = [np.full(4, 0.2), np.full(4, 0.8)]
        assert estimate_mean(scores) == pytest.approx((0.5, 0.5, 0.5))

    def test_the_interval_holds_the_truth_about_as_often_as_it_says(self) -> None:
        """Of ten numbers an arm the interval is a little too narrow, as a bootstrap's is known to be."""
        rng, held = np.random.default_rng(0), 0
        for _ in range(200):
            _, low, high = estimate_difference([rng.normal(1.0, 0.3, 10)], [rng.normal(0.5, 0.3, 10)])
            held += low <= 0.5 <= high
        assert 0.86 < held / 200 < 0.98
