"""The page of a policy on the Hugging Face Hub: what it does, what goes in and out, how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thousandfold.stages.policy_file.metadata import Element, InputElement, PolicyMetadata
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE
from thousandfold.stages.policy_file.registration import one_cell

LIBRARY = "thousandfold"
# Those that the Hub knows under their SPDX name in small letters, of
# https://huggingface.co/docs/hub/repositories-licenses; any other stands there as "other".
_LICENCES = {
    "agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-2.0", "gpl-3.0", "isc", "lgpl-3.0", "mit", "mpl-2.0",
    "unlicense", "zlib",
}  # fmt: skip


def model_card(
    repository: str,
    metadata: PolicyMetadata,
    hashes: Mapping[str, str],
    *,
    benchmark: Mapping[str, Any] | None = None,
    with_task: bool = False,
) -> str:
    """Return the text of README.md: the Hub's metadata in YAML, and a page in Markdown.

    Args:
        repository: name of it, `NAMESPACE/NAME`.
        metadata: of the policy file.
        hashes: SHA-256 by what it is of.
        benchmark: results of a benchmark of the policy; None: it has not been timed.
        with_task: whether the folder of a user's task lies beside the file.
    """
    network, task = metadata.network, one_cell(metadata.task)
    rate, steps = 1 / metadata.control_dt_s, metadata.episode_steps
    lines = [
        f"# {repository}",
        "",
        f"A {metadata.role} policy for the goal-reaching task `{task}` in MuJoCo: given an observation and a "
        f"goal, it returns the controls that lead there, {rate:g} times a second. It is one ONNX file, "
        f"`{POLICY_FILE}`, made with Thousandfold: a {one_cell(network.kind)} network of depth "
        f"{network.depth} and width {network.width} ({network.parameters:,} parameters, "
        f"{metadata.precision}).",
        "",
        "## Success",
        "",
    ]
    if measured := metadata.evaluation:
        low, high = measured.success_interval
        lines.append(
            f"**{measured.success:.3f}** of {measured.episodes:,} fresh simulated episodes of at most "
            f"{steps:,} steps ({steps * metadata.control_dt_s:g} s) reached their goal; 95 % interval "
            f"[{low:.3f}, {high:.3f}], measured in {measured.runtime}."
        )
    else:
        lines.append("Nobody has measured it.")
    if metadata.robustness:
        lines += ["", "| what differs from the model | level | success | 95 % interval | episodes |"]
        lines += ["|---|---|---|---|---|"]
        for level in metadata.robustness:
            low, high = level.success_interval
            lines.append(
                f"| {one_cell(level.factor)} | {level.value:g} | {level.success:.3f} | [{low:.3f}, "
                f"{high:.3f}] | {level.episodes:,} |"
            )
    if timed := ((benchmark or {}).get("networks") or {}).get(metadata.role, {}).get("back_to_back"):
        where = one_cell(str((benchmark or {}).get("host", {}).get("cpu", "an unknown processor")))
        lines += [
            "",
            f"A call takes {timed['p50_us']:.0f} µs at the median and {timed['p99_us']:.0f} µs at the 99th "
            f"percentile, called back to back on one thread of {where}.",
        ]
    page = "task/task.yaml"
    needs_task = metadata.task_file is not None and not with_task
    lines += [
        "",
        "## Run it",
        "",
        "```",
        'pip install "thousandfold[hub]"',
        f"pipeline policy pull {repository} --out policy",
        f"pipeline run-policy --policy policy/{POLICY_FILE}{' --task YOUR_TASK.yaml' if needs_task else ''}",
        "```",
        "",
        "```python",
        "import thousandfold",
        "",
        f'policy = thousandfold.load("policy/{POLICY_FILE}")',
        "action = policy.predict(observation, goal)  # in [-1, 1]",
        "```",
        "",
    ]
    if with_task:
        lines += [f"The task is its maker's own; `{page}` and its model lie beside the file.", ""]
    elif needs_task:
        lines += ["The task is its maker's own, and is not in this repository.", ""]
    lines += [
        "## Inputs and outputs",
        "",
        "Inputs and outputs are float32. The graph clips inputs to their limits; a runner refuses one that "
        "is not finite.",
        "",
    ]
    for name, elements in (*metadata.inputs, *metadata.outputs):
        lines += _table(name, elements)
    lines += ["## Hashes and descent", "", "| of | SHA-256 |", "|---|---|"]
    lines += [f"| {what} | `{digest}` |" for what, digest in hashes.items()]
    lines += [
        f"| {one_cell(role)} {one_cell(origin.name)} | `{one_cell(origin.hash)}` |"
        for role, origin in metadata.parents.items()
    ]
    lines += ["", f"Licence: {one_cell(metadata.licence) or 'none stated'}.", ""]
    return _front_matter(repository, metadata) + "\n".join(lines)


def _table(name: str, elements: tuple[Element | InputElement, ...]) -> list[str]:
    lines = [
        f"### `{name}` ({len(elements)})",
        "",
        "| # | name | unit | from | to |",
        "|---|---|---|---|---|",
    ]
    for index, each in enumerate(elements):
        low, high = (
            (each.limit_low, each.limit_high) if isinstance(each, InputElement) else (each.low, each.high)
        )
        lines.append(f"| {index} | {one_cell(each.name)} | {one_cell(each.unit)} | {low:g} | {high:g} |")
    return [*lines, ""]


def _front_matter(repository: str, metadata: PolicyMetadata) -> str:
    """Return what the Hub reads: the licence, tags, and the success as a result of reinforcement learning."""
    from huggingface_hub import EvalResult, ModelCardData

    licence = metadata.licence.lower()
    terms: dict[str, Any] = {"license": licence}
    if licence not in _LICENCES:
        terms = {"license": "other", "license_name": metadata.licence} if licence else {}
    task, measured = metadata.task, metadata.evaluation
    results = measured and [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="reinforcement-learning",
            dataset_type=task,
            dataset_name=task,
            metric_type="success_rate",
            metric_name="success, 95 % interval [{:.3f}, {:.3f}]".format(*measured.success_interval),
            metric_value=measured.success,
        )
    ]
    data = ModelCardData(
        **terms,
        library_name=LIBRARY,
        pipeline_tag="reinforcement-learning",
        tags=["reinforcement-learning", "goal-conditioned", "robotics", "mujoco", "onnx", task],
        model_name=repository.rpartition("/")[2],
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---\n"
