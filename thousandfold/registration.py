"""What Gymnasium knows of Thousandfold. It is told as soon as both are imported, in whichever order."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from thousandfold.envs.task_names import TASK_NAMES, environment_id

USER_TASK_ID = "thousandfold/UserTask-v0"
"""The environment of a task of your own: `make` and `make_vec` take its YAML file as `task`."""

_ENVIRONMENTS = "thousandfold.envs.goal_env"
_FORMER_ENVIRONMENTS = ("envs", "envs.goal_env")


def register_environments_with_gymnasium() -> None:
    """Register the environments, now or when Gymnasium is imported: importing it takes longer than we do.

    Datasets of earlier versions name ``envs.goal_env`` as the place of their environment: where there is no
    such module, it is found here.
    """
    if "gymnasium" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterGymnasium())
    sys.meta_path.append(_FormerPlace())


def _register() -> None:
    from gymnasium import register

    environment, vector_environment = f"{_ENVIRONMENTS}:GoalEnv", f"{_ENVIRONMENTS}:GoalVectorEnv"
    for name in TASK_NAMES:
        # No max_episode_steps: the environments truncate themselves, after as many steps as they are told.
        register(
            id=environment_id(name),
            entry_point=environment,
            vector_entry_point=vector_environment,
            kwargs={"task": name},
        )
    register(id=USER_TASK_ID, entry_point=environment, vector_entry_point=vector_environment)


class _AfterGymnasium(MetaPathFinder):
    """Has Gymnasium imported as it would be, and registers the environments when that is done."""

    def __init__(self) -> None:
        self._asking = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # Being asked for is not being imported: many a library only looks whether Gymnasium is there.
        if fullname != "gymnasium" or getattr(self._asking, "now", False):
            return None
        self._asking.now = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking.now = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def then_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = then_register
        return spec


class _FormerPlace(MetaPathFinder, Loader):
    """Finds ``envs.goal_env``, where nobody else has it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _FORMER_ENVIRONMENTS:
            return None
        return ModuleSpec(fullname, self, is_package=fullname == _FORMER_ENVIRONMENTS[0])

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == _FORMER_ENVIRONMENTS[1]:
            ours = importlib.import_module(_ENVIRONMENTS)
            vars(module).update(GoalEnv=ours.GoalEnv, GoalVectorEnv=ours.GoalVectorEnv)
