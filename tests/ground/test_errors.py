"""Errors that a user can act on: one line each, and the code that the command line exits with."""

from __future__ import annotations

import pytest

from thousandfold.envs.pictures.opengl import MujocoVariableError, NoOpenGLError
from thousandfold.envs.task import TaskError
from thousandfold.ground.errors import SettingsError, StoppedByUser, UserError
from thousandfold.replay.goal_episode import DatasetError


@pytest.mark.parametrize(
    "error", [UserError, SettingsError, TaskError, DatasetError, NoOpenGLError, MujocoVariableError]
)
def test_a_message_is_one_line_whatever_it_repeats(error: type[UserError]) -> None:
    raised = error("the name 'a\n\n b'\tis not known:\n  choose another")
    assert "the name 'a b' is not known: choose another" in str(raised) and "\n" not in str(raised)
    assert isinstance(raised, UserError) and raised.exit_code == 2


def test_a_stopped_run_exits_as_a_shell_expects() -> None:
    assert StoppedByUser("stopped").exit_code == 130


@pytest.mark.parametrize("error", [TaskError, DatasetError])
def test_callers_may_catch_what_is_wrong_with_a_value(error: type[UserError]) -> None:
    assert issubclass(error, ValueError)
