"""What a user mistypes or asks for in vain: one clear line, exit code 2, nothing lost, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.command_line import error_of, pipeline
from tests.end_to_end.refusals import SMOKE, invoke, newest, refused
from thousandfold.pipeline.artifacts import Workspace


class TestNames:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ("train-teacher", "--task", "point_u_mase"),
                "train_teacher: Unknown task 'point_u_mase': did you mean 'point_u_maze'? "
                "`pipeline tasks` lists them.",
            ),
            (("run", "--preset", "quikstart"), "Unknown preset 'quikstart': did you mean 'quickstart'?"),
            (
                ("train-teacher", "--set", "detph=4"),
                "train_teacher: Unknown setting 'detph': did you mean 'depth'?",
            ),
            (
                ("run", "--set", "train_teacher.detph=4"),
                "train_teacher: Unknown setting 'detph': did you mean 'depth'?",
            ),
            (
                ("run", "--set", "distil.student_depth=4"),
                "--set distil.student_depth=4: Unknown stage 'distil': did you mean 'distill'?",
            ),
            (("run", "--set", "depth=4"), "--set depth=4: name the stage too, as in train_teacher.depth=32."),
            (
                ("train-teacher", "--set", "training_distribution=trainin"),
                "train_teacher: Task 'point_u_maze' has no episode distribution 'trainin': "
                "did you mean 'training'? It has evaluation, training, training_from_start.",
            ),
        ],
    )
    def test_unknown_ones_offer_the_nearest(
        self, tmp_path: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        assert refused(tmp_path, *arguments) == message
        assert not Workspace(tmp_path).artifacts()

    def test_of_the_task_in_a_chain(self, tmp_path: Path) -> None:
        message = refused(tmp_path, "run", *SMOKE, "--set", "train_teacher.task=point_u_mase")
        assert message.startswith("train_teacher: Unknown task 'point_u_mase': did you mean 'point_u_maze'?")
        assert not Workspace(tmp_path).artifacts()

    def test_of_an_evaluation_s_distribution(self, chain: Path) -> None:
        message = refused(chain, "evaluate", "--set", "distribution=evaluaton")
        assert "no episode distribution 'evaluaton': did you mean 'evaluation'? It has evaluation," in message


class TestValues:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ("train-teacher", "--depth", "6"),
                "train_teacher: depth 6 of a residual network is not a multiple of 4: use 4 or 8",
            ),
            (
                ("run", "--set", "train_teacher.depth=18"),
                "train_teacher: depth 18 of a residual network is not a multiple of 4: use 16 or 20",
            ),
            (
                ("distill", "--student-depth", "6", "--student-kind", "residual"),
                "distill: depth 6 of a residual network is not a multiple of 4: use 4 or 8",
            ),
            (("run", "--min-success", "nan"), "--min-success must be between 0 and 1 (got nan)."),
            (("run", "--resume", "--min-success", "1.5"), "--min-success must be between 0 and 1 (got 1.5)."),
            (("train-teacher", "--set", "depth"), "--set depth: expected key=value."),
            (
                ("train-teacher", "--set", "depth=[1"),
                "--set depth=[1 is not valid YAML: expected ',' or ']', but got '<stream end>' (line 1).",
            ),
            (
                ("train-teacher", "--seed", "-1"),
                "train_teacher: seed must be greater than or equal to 0 (got -1)",
            ),
        ],
    )
    def test_out_of_bounds_say_what_is_allowed(
        self, tmp_path: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        assert refused(tmp_path, *arguments) == message
        assert not list(tmp_path.iterdir())


class TestMissingArtifacts:
    @pytest.mark.parametrize(
        ("stage", "kind", "maker"),
        [
            ("generate-dataset", "teacher", "train-teacher"),
            ("distill", "teacher", "train-teacher"),
            ("export-onnx", "student", "distill"),
            ("benchmark", "policy", "export-onnx"),
        ],
    )
    def test_name_the_command_that_makes_them(
        self, tmp_path: Path, stage: str, kind: str, maker: str
    ) -> None:
        expected = f"No completed {kind} in {tmp_path}/runs: make one with `pipeline {maker}`."
        assert refused(tmp_path, stage) == expected
        assert not list(tmp_path.iterdir()), "nothing is made on the way"

    def test_by_name_offer_the_nearest(self, chain: Path) -> None:
        teacher = newest(chain, "teacher").name
        assert refused(chain, "evaluate", "--teacher", teacher[:-1]).endswith(f"did you mean {teacher}?")

    def test_of_another_kind(self, chain: Path) -> None:
        message = refused(chain, "generate-dataset", "--teacher", newest(chain, "student").name)
        assert message.endswith("is a student, not a teacher: give a teacher instead.")

    @pytest.mark.parametrize("command_name", ["evaluate", "export-onnx"])
    def test_not_two_at_once(self, chain: Path, command_name: str) -> None:
        arguments = ("--student", newest(chain, "student").name, "--teacher", newest(chain, "teacher").name)
        message = refused(chain, command_name, *arguments)
        assert message == "Give one of --student, --teacher, not several."

    def test_a_dataset_of_another_teacher(self, copied: Path) -> None:
        assert invoke(copied, "train-teacher", *SMOKE, "--seed", "7").exit_code == 0
        dataset = newest(copied, "dataset").name
        message = refused(copied, "distill", *SMOKE, "--dataset", dataset)
        assert f"Dataset {dataset} was made by" in message
        assert "make one with `pipeline generate-dataset --teacher" in message

    def test_nothing_to_resume(self, chain: Path, tmp_path: Path) -> None:
        assert "No unfinished teacher" in refused(tmp_path, "train-teacher", "--resume")
        assert "No unfinished chain" in refused(tmp_path, "run", "--resume")
        teacher = newest(chain, "teacher").name
        message = refused(chain, "train-teacher", "--resume", teacher)
        assert message.startswith(
            f"Teacher {teacher} is completed at 3,200 steps: train it further, as a new"
        )
        assert "No unfinished chain" in refused(chain, "run", "--resume")

    def test_a_resumed_chain_takes_no_settings(self, tmp_path: Path) -> None:
        given = [("--seed", "0"), ("--set", "depth=8"), SMOKE, ("--device", "cpu"), ("--dry-run",)]
        for flags in given:
            message = refused(tmp_path, "run", "--resume", *flags)
            assert message == f"--resume keeps the settings of the run: leave {flags[0]} out."


@pytest.mark.slow
def test_nan_in_the_loss_stops_and_says_where(tmp_path: Path) -> None:
    arguments = ("train-teacher", *SMOKE, "--set", "env_steps=8000", "--set", "actor_learning_rate=1e30")
    done = pipeline(tmp_path, *arguments, code=2)
    line = error_of(done.stderr)
    assert " became nan at step " in line or " became inf at step " in line
    (teacher,) = Workspace(tmp_path).artifacts("teacher")
    assert teacher.manifest.status == "failed"
    assert teacher.manifest.results["error"] in line
    assert "No completed teacher" in refused(tmp_path, "generate-dataset")
