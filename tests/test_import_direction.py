"""Who may import whom, read from the sources with `ast`; nothing of the packages is imported here."""

from __future__ import annotations

import ast
import graphlib
import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from thousandfold.pipeline.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ground", "models", "envs", "replay", "pipeline", "stages")

# folder -> the folders that it may import
ALLOWED = {
    "ground": {"ground"},
    "models": {"models"},
    "envs": {"envs", "ground"},
    "replay": {"replay", "envs", "ground"},
    "pipeline": {"pipeline", "replay", "envs", "models", "ground"},
    "stages": {"stages", "pipeline", "replay", "envs", "models", "ground"},
    "thousandfold": {"thousandfold", "stages", "pipeline", "replay", "envs", "models", "ground"},
}
# A stage hands on artifacts, not code: these are imported by commands and by what runs several stages alone.
STAGES = {
    f"stages.{stage}"
    for stage in (
        "train_teacher.train_teacher", "dataset.generate_dataset", "dataset.import_dataset",
        "dataset.merge_datasets", "distill.distill", "export_onnx.export_onnx", "benchmark.benchmark",
        "closed_loop.evaluate", "closed_loop.render", "closed_loop.run_policy", "report.report",
        "frontier.frontier", "study.study", "chain.chain",
    )
}  # fmt: skip
RUN_SEVERAL_STAGES = ("stages.chain.", "stages.frontier.", "stages.stage_settings", "stages.study.")

KERNELS = {"models.vector_code", "models.norm_swish_kernels", "models.info_nce_kernels"}
WARP_KERNELS = {"models.norm_swish_tiles"}
TORCH_IN_ENVS = {"envs.simulators.warp_simulator"}
# What the base install lacks, and the modules that must load without it.
TRAIN_ONLY = {
    "h5py", "huggingface_hub", "imageio", "imageio_ffmpeg", "jinja2", "llvmlite", "matplotlib", "minari",
    "mlflow", "mujoco_warp", "onnx", "PIL", "safetensors", "scipy", "submitit", "tensorboard",
    "threadpoolctl", "torch", "wandb", "warp",
}  # fmt: skip
RUNS_ON_BASE_INSTALL = (
    "thousandfold",
    "thousandfold.api",
    "pipeline.__main__",
    "pipeline.cli",
    "pipeline.model_registry",
    "stages.benchmark.benchmark",
    "stages.benchmark.fresh_probe",
    "stages.closed_loop.run_policy",
    "stages.policy_file.command",
    "stages.policy_file.source",
    "stages.policy_file.verification",
)
PICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


@dataclass(frozen=True)
class Import:
    """One imported module; `at_load` is False inside functions and TYPE_CHECKING blocks."""

    target: str
    line: int
    at_load: bool


def local_modules(root: Path) -> dict[str, Path]:
    """Map dotted names of the product's modules to their files."""
    paths = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    paths += (root / "thousandfold").glob("*.py")
    names = {path: path.relative_to(root).with_suffix("").parts for path in paths}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): path for path, p in names.items()}


def group_of(module: str) -> str | None:
    """Return the folder of a local module, or None for anything else."""
    top = module.partition(".")[0]
    return top if top in ALLOWED else None


def local(module: str) -> str:
    """Return a module's name as its folder has it: what is installed is `thousandfold` alone."""
    folder = module.removeprefix("thousandfold.")
    return folder if folder.partition(".")[0] in PACKAGES else module


def imports_of(name: str, path: Path, known: dict[str, Path]) -> list[Import]:
    """Return the imports of a module: relative ones resolved, `from a import b` as `a.b` if a module."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: list[Import] = []

    def visit(node: ast.AST, at_load: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(local(alias.name), node.lineno, at_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = local(".".join([*start, *([node.module] if node.module else [])]))
            for alias in node.names:
                full = f"{source}.{alias.name}"
                found.append(Import(full if full in known else source, node.lineno, at_load))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            visit_all(node.body, False)
            visit_all(node.orelse, at_load)
        else:
            in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            visit_all(ast.iter_child_nodes(node), at_load and not in_function)

    def visit_all(nodes: Iterable[ast.AST], at_load: bool) -> None:
        for node in nodes:
            visit(node, at_load)

    visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)
    return found


def forbidden_arrow(name: str, item: Import) -> str | None:
    """Say what is wrong with one import of module `name`, or None."""
    group, target_group, third_party = group_of(name), group_of(item.target), item.target.partition(".")[0]
    assert group is not None
    if third_party in PICKLERS:
        return "nothing is pickled"
    if target_group is None:
        if third_party == "llvmlite":
            return None if name in KERNELS else f"llvmlite belongs to {', '.join(sorted(KERNELS))} alone"
        if third_party == "onnx" and name == "models.onnx_graph":
            return None
        if third_party == "warp" and name in WARP_KERNELS:
            return None
        if group == "models" and third_party != "torch" and third_party not in sys.stdlib_module_names:
            return "models import torch alone"
        if group == "envs" and third_party == "torch" and name not in TORCH_IN_ENVS:
            return "torch in envs belongs to the simulator on Warp alone"
        return None
    if target_group not in ALLOWED[group]:
        return f"{group} may not use {target_group}"
    may_run_stages = name.startswith(RUN_SEVERAL_STAGES) or name.endswith(".command")
    if group == "stages" and item.target in STAGES - {name} and not may_run_stages:
        return "a stage does not import another stage"
    if name.endswith(".command") and item.at_load and item.target.startswith("stages."):
        return None if item.target.endswith(".command") else "a command imports its stage when it is called"
    return None


def circles(imports: Mapping[str, list[Import]]) -> list[list[str]]:
    """Return the groups of modules that reach one another by their imports, wherever these stand."""
    targets = {name: {item.target for item in items} & set(imports) for name, items in imports.items()}
    try:
        graphlib.TopologicalSorter(targets).prepare()
    except graphlib.CycleError as error:
        return [error.args[1]]
    return []


def loaded_with(start: str, imports: dict[str, list[Import]]) -> set[str]:
    """Return the local modules that importing `start` loads, itself and parent packages included."""
    reached, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name in reached or name not in imports:
            continue
        reached.add(name)
        waiting += [item.target for item in imports[name] if item.at_load]
        waiting += [name.rpartition(".")[0]]
    return reached


def pickling_calls(path: Path) -> Iterator[int]:
    """Yield the lines that pickle without importing pickle."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        allows = any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
        if allows or ast.unparse(node.func) in ("torch.save", "torch.load"):
            yield node.lineno


def violations(root: Path) -> list[str]:
    """Return one line for everything below `root` that breaks the import rules."""
    known = local_modules(root)
    imports = {name: imports_of(name, path, known) for name, path in known.items()}
    found = []
    for name, items in imports.items():
        for item in items:
            if reason := forbidden_arrow(name, item):
                found.append(f"{name}:{item.line} imports {item.target}: {reason}")
        found += [f"{name}:{line} pickles: nothing is pickled" for line in pickling_calls(known[name])]
    for start in RUNS_ON_BASE_INSTALL:
        for name in sorted(loaded_with(start, imports)):
            for item in imports[name]:
                if item.at_load and item.target.partition(".")[0] in TRAIN_ONLY:
                    found.append(f"{name}:{item.line} imports {item.target}: {start} must load without it")
    found += [f"a circle: {' -> '.join(circle)}" for circle in circles(imports)]
    init = root / "pipeline" / "__init__.py"
    if init.exists() and init.read_text():
        found.append("pipeline/__init__.py is not empty")
    found += [f"{path.relative_to(root)} shadows the library" for path in (root / "mlflow").rglob("*.py")]
    return found


def test_every_import_follows_the_rules():
    # The checker looks at the real tree, and each of its tables at modules that are there.
    tables = {*STAGES, *KERNELS, *WARP_KERNELS, *TORCH_IN_ENVS, *RUNS_ON_BASE_INSTALL}
    assert tables <= local_modules(ROOT).keys()
    assert violations(ROOT) == []


def test_every_folder_is_linked_into_the_package_that_is_installed():
    for folder in PACKAGES:
        assert (ROOT / "thousandfold" / folder).readlink() == Path("..", folder)
        inits = {path.parent for path in (ROOT / folder).rglob("*.py")}
        assert all((folder / "__init__.py").is_file() for folder in inits)


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "benchmarks"])
def test_no_folder_is_imported_by_its_bare_name(folder: str):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.partition(".")[0] for name in names} & set(PACKAGES), (path, names)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_lies_where_the_table_says(name: str):
    command = cli.get_command(click.Context(cli), name)
    assert isinstance(command, click.Command) and command.name == name
    assert command.help and Path(importlib.import_module(COMMANDS[name]).__file__ or "").parent.is_dir()


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"pipeline/__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("models/actor.py", "import numpy", "models import torch alone"),
        ("models/actor.py", "def f():\n    from llvmlite import ir", "models.vector_code alone"),
        ("models/actor.py", "from envs.task import GoalTask", "models may not use envs"),
        ("envs/task.py", "def f():\n    import torch", "simulator on Warp alone"),
        ("envs/task.py", "from pipeline.errors import UserError", "envs may not use pipeline"),
        ("ground/limited_yaml.py", "from envs.task import GoalTask", "ground may not use envs"),
        ("envs/tasks/ant.py", "from ...models import actor", "envs may not use models"),
        ("pipeline/settings.py", "from stages import episodes", "pipeline may not use stages"),
        ("pipeline/cli.py", "def f():\n    from stages import episodes", "pipeline may not use stages"),
        ("replay/hindsight.py", "import models", "replay may not use models"),
        (
            "stages/distill/distill.py",
            "from stages.train_teacher import train_teacher",
            "does not import another stage",
        ),
        (
            "stages/distill/distill.py",
            "def f():\n    from ..train_teacher.train_teacher import run",
            "does not import another stage",
        ),
        ("stages/episodes.py", "from thousandfold import registration", "stages may not use thousandfold"),
        ("stages/tasks/command.py", "from stages import episodes", "imports its stage when it is called"),
        ("pipeline/cli.py", "import mlflow.tracking", "pipeline.cli must load without it"),
        (
            "stages/benchmark/benchmark.py",
            "try:\n    import torch\nexcept ImportError:\n    pass",
            "must load without it",
        ),
        (
            "stages/benchmark/benchmark.py",
            "from stages.networks import f",
            "stages.benchmark.benchmark must load without it",
        ),
        ("models/blocks.py", "def f():\n    from models import actor", "a circle"),
        ("replay/dataset.py", "import pickle", "nothing is pickled"),
        ("replay/dataset.py", "numpy.load('a', allow_pickle=True)", "nothing is pickled"),
        ("pipeline/__init__.py", "import os", "not empty"),
        ("mlflow/__init__.py", "", "shadows the library"),
    ],
)
def test_a_forbidden_arrow_is_caught(tmp_path: Path, path: str, text: str, reason: str):
    others = {
        "stages/train_teacher/train_teacher.py": "",
        "stages/networks.py": "import torch",
        "stages/episodes.py": "",
        "models/actor.py": "from models import blocks",
        "models/blocks.py": "",
        "thousandfold/registration.py": "",
    }
    found = violations(write_tree(tmp_path, {**others, path: text}))
    assert found and reason in found[0], found


def test_allowed_arrows_pass(tmp_path: Path):
    tree = {
        "models/actor.py": "import math\nimport torch.nn\nfrom models.blocks import Block",
        "models/blocks.py": "from __future__ import annotations\nimport torch",
        "models/norm_swish_kernels.py": "import llvmlite.binding",
        "envs/simulators/warp_simulator.py": "import torch\nfrom envs.task import GoalTask",
        "envs/task.py": "import mujoco\nfrom ground import plain_files",
        "ground/plain_files.py": "import os",
        "replay/hindsight.py": "import numpy\nfrom envs import task",
        "stages/networks.py": "import torch\nfrom models import actor",
        "stages/distill/distill.py": "from stages.networks import f\nfrom pipeline import errors",
        "stages/benchmark/benchmark.py": (
            "from typing import TYPE_CHECKING\nfrom pipeline.errors import UserError\n"
            "if TYPE_CHECKING:\n    import torch\ndef f():\n    import mlflow"
        ),
        "pipeline/errors.py": "",
        "stages/distill/command.py": "import click\ndef f():\n    from stages.distill import distill",
    }
    assert violations(write_tree(tmp_path, tree)) == []
