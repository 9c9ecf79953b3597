"""Runs, metrics, datasets and models in MLflow: one chain run, a child run a stage.

MLflow is imported when a tracker is opened; where it is not installed, nothing is recorded in it. Settings,
metrics and pictures also go to the sinks that are named. A store or a sink that fails later never ends a
stage: it is reported once and tried again from time to time.
"""

from __future__ import annotations

import getpass
import json
import math
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from thousandfold.ground.errors import FullStoreError, StoppedByUser
from thousandfold.pipeline.system_metrics import SystemMetrics, watch_system
from thousandfold.pipeline.tracking_sinks import RecordedStage, Sink, SinkRun, open_sinks
from thousandfold.pipeline.tracking_store import (
    UNTRACKED,
    call_within,
    create_unless_present,
    is_untracked,
    mlflow_is_installed,
    one_line,
    open_store,
    store_name,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

C = TypeVar("C")
T = TypeVar("T")

# MLflow reserves the alias "latest"; `models:/<name>/latest` works without one.
NEWEST_ALIAS = "newest"

FLUSH_EVERY_METRICS = 200
FLUSH_EVERY_S = 2.0
RETRY_AFTER_S = 30.0
PATIENCE_S = 10.0
"""How long a stage waits for one answer of the store."""
UPLOAD_PATIENCE_S = 300.0
"""The same of files, whose size and way decide how long they take."""
SINK_PATIENCE_S = 30.0
"""The same of a sink that begins a run, for which it may start a process and ask a server."""
METRICS_KEPT_WHILE_AWAY = 20_000

NOTE_TAG = "mlflow.note.content"
"""The tag that MLflow's page shows as a description, in Markdown."""

# MLflow's own limits (mlflow/utils/validation.py, 3.17).
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_PARAM_LENGTH = 6000
_TAG_LENGTH = 5000
_DIGEST_LENGTH = 36


class _Store(Generic[C]):
    """Keeps a failing store from ending or holding a run: warns once, and tries again only now and then."""

    def __init__(
        self,
        client: C | None,
        warn: Callable[[str], None],
        say: Callable[[str], None],
        title: str = "MLflow",
    ) -> None:
        self.client = client
        self.title = title
        self.lost: Counter[str] = Counter()  # what was not recorded since it was last reported
        self._warn, self._say = warn, say
        self._warned = False
        self._away_until = self._gone_until = 0.0  # for most calls, and for those that are to be made now
        self._late: Future[Any] | None = None  # a call that is given up and still under way

    def attempt(
        self,
        call: Callable[[C], T],
        what: str = "",
        *,
        now: bool = False,
        limit_s: float | None = None,
    ) -> T | None:
        """Return `call(client)`; None without a client, after a failure, and while a failing store rests.

        Args:
            call: What to do.
            what: What is not recorded where it fails.
            now: Whether to try even while the store rests, unless such a call has failed, too.
            limit_s: When to go on without an answer; None: after `PATIENCE_S`.
        """
        limit_s = PATIENCE_S if limit_s is None else limit_s
        if (client := self.client) is None:
            return None
        if self._late is not None and self._late.done():
            self._late = None
        started = time.monotonic()
        if self._late is None and started >= (self._gone_until if now else self._away_until):
            try:
                result, self._late = call_within(limit_s, lambda: call(client))
                if self._late is None:
                    return result
                reason = f"no answer within {limit_s:.0f} s"
            except Exception as error:  # whatever MLflow, SQLAlchemy or the network raise: the work goes on
                reason = one_line(error)
            failed = time.monotonic()
            # A server that times out slowly may cost a run 5 % of its time, no more.
            self._away_until = failed + max(RETRY_AFTER_S, 20 * (failed - started))
            if now:
                self._gone_until = self._away_until
            if not self._warned:
                self._warned = True
                self._warn(f"Tracking in {self.title} failed and will have gaps; the work goes on: {reason}")
        if what:
            self.lost[what] += 1
        return None

    def report_lost(self) -> None:
        """Say what was not recorded since this was last called."""
        if self.lost:
            what = ", ".join(f"{count} {name}" if count > 1 else name for name, count in self.lost.items())
            self._say(f"Not recorded in {self.title}: {what}. The files below runs/ are whole.")
            self.lost.clear()


class StageRun:
    """The record of one stage; metrics are collected and written to MLflow in batches, to sinks at once."""

    def __init__(
        self,
        store: _Store[MlflowClient],
        run_id: str | None,
        chain_run_id: str | None,
        system: SystemMetrics | None = None,
        sinks: Sequence[tuple[_Store[Sink], SinkRun]] = (),
    ) -> None:
        self.run_id = run_id  # None: nothing is recorded in MLflow
        self.chain_run_id = chain_run_id
        self._sinks = sinks
        self._store = store
        self._id = run_id or ""
        self._system = system
        self._metrics: list[tuple[str, float, int, int]] = []  # key, value, timestamp_ms, step
        self._flushed_at = time.monotonic()

    @property
    def sink_ids(self) -> dict[str, str]:
        """What each sink calls the run, by the sink's name."""
        return {store.client.name: run.id for store, run in self._sinks if store.client is not None}

    def _tell_sinks(
        self,
        call: Callable[[SinkRun], None],
        what: str,
        *,
        now: bool = False,
        limit_s: float | None = None,
    ) -> None:
        for store, run in self._sinks:
            store.attempt(lambda _, run=run: call(run), what, now=now, limit_s=limit_s)

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Record settings as parameters: nested keys become `outer.inner`, long values are cut.

        MLflow's parameters never change: on a resumed run, what differs becomes a tag `resumed.<key>`.
        """
        self._store.attempt(lambda client: _write_params(client, self._id, settings, "resumed"), "settings")
        self._tell_sinks(lambda run: run.log_settings(dict(_flatten(settings))), "settings")

    def log_chain_settings(self, settings: Mapping[str, Any]) -> None:
        """Record settings on the chain's run, too, so that chains compare; keys as in `log_settings`.

        Where another stage has set one before, the new value becomes a tag `newest.<key>`.
        """
        if chain := self.chain_run_id:
            self._store.attempt(
                lambda client: _find_run(client, chain) and _write_params(client, chain, settings, "newest"),
                "settings of the chain",
            )

    def log_headline(self, metrics: Mapping[str, float | None], step: int = 0, *, chain: bool = True) -> None:
        """Record the few figures that runs are compared by, on this run and on its chain's.

        They have no group; a chain's run has no others. One that is None is undefined and left out.
        """
        known = {key: float(value) for key, value in metrics.items() if value is not None}
        self.log_metrics(known, step)
        if not chain or not (chain_run_id := self.chain_run_id):
            return
        now_ms = time.time_ns() // 1_000_000

        def write(client: MlflowClient) -> None:
            from mlflow.entities import Metric

            if _find_run(client, chain_run_id):
                points = [Metric(key, value, now_ms, step) for key, value in known.items()]
                client.log_batch(chain_run_id, [point for point in points if math.isfinite(point.value)])

        self._store.attempt(write, "figures of the chain")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at a step, written every 200 or 2 s; one that is not finite becomes a tag.

        A name's group stands before its slash: MLflow draws each group in a section of its own.
        """
        now_ms = time.time_ns() // 1_000_000
        strange = {}
        plain = {_clean_key(key): float(value) for key, value in metrics.items()}
        self._tell_sinks(lambda run: run.log_metrics(plain, step), "metrics")
        if self._system is not None:
            self._metrics += self._system.take()
        for key, value in plain.items():
            if math.isfinite(value):
                self._metrics.append((key, value, now_ms, step))
            else:
                strange[f"nonfinite.{key}"] = f"{value} at step {step}"
        self.log_tags(strange)
        due = time.monotonic() - self._flushed_at >= FLUSH_EVERY_S
        if due or len(self._metrics) >= FLUSH_EVERY_METRICS:
            self.flush()

    def log_tags(self, tags: Mapping[str, object]) -> None:
        """Record tags; long values are cut."""

        def write(client: MlflowClient) -> None:
            from mlflow.entities import RunTag

            client.log_batch(self._id, tags=[RunTag(*tag) for tag in _as_tags(tags).items()])

        if tags:
            self._store.attempt(write, "tags")

    def log_file(self, path: Path, folder: str = "") -> None:
        """Copy a file or a folder among the run's artifacts, below `folder` where given.

        Sinks get pictures and videos alone.
        """
        self._store.attempt(
            lambda client: client.log_artifact(self._id, str(path), folder or None),
            path.name,
            limit_s=UPLOAD_PATIENCE_S,
        )
        self._tell_sinks(lambda run: run.log_file(path), path.name, limit_s=UPLOAD_PATIENCE_S)

    def log_dataset(self, name: str, digest: str, source: str, rows: int, context: str) -> None:
        """Record a dataset of so many transitions that the stage read or wrote.

        `source` is its path or address, `context` what it was used for, such as "training". Of the digest of
        its content the first 36 characters are kept.
        """

        def write(client: MlflowClient) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            uri, profile = json.dumps({"uri": source}), json.dumps({"num_rows": rows})
            dataset = Dataset(name, digest[:_DIGEST_LENGTH], "local", uri, profile=profile)
            used = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
            client.log_inputs(self._id, datasets=[used])

        self._store.attempt(write, f"dataset {name}")

    def register_model(
        self,
        name: str,
        folder_or_file: Path | Callable[[], Path],
        tags: Mapping[str, object] | None = None,
        aliases: Iterable[str] = (NEWEST_ALIAS,),
        description: str = "",
        about: str = "",
    ) -> str | None:
        """Copy a model among the artifacts and register a new version of it under the aliases.

        Returns the version, or None where nothing was recorded.

        Args:
            name: Of the registered model.
            folder_or_file: What to copy, or what makes it first; its errors count as the store's own.
            tags, description: Of the version; the description is Markdown.
            aliases: That are moved to the version.
            about: Description of the registered model, when this is its first version.
        """
        folder = f"models/{name}"

        def register(client: MlflowClient) -> str:
            copied = folder_or_file if isinstance(folder_or_file, Path) else folder_or_file()
            log = client.log_artifacts if copied.is_dir() else client.log_artifact
            log(self._id, str(copied), folder)
            source = f"{client.get_run(self._id).info.artifact_uri}/{folder}"
            create_unless_present(lambda: client.create_registered_model(name, description=about or None))
            made = client.create_model_version(
                name, source, self._id, tags=_as_tags(tags), description=description or None
            )
            version = made.version
            for alias in aliases:
                client.set_registered_model_alias(name, alias, version)
            return str(version)

        return self._store.attempt(register, f"model {name}", limit_s=UPLOAD_PATIENCE_S)

    def page_of(self, run_id: str) -> str | None:
        """Return where MLflow's UI has a run's page, as a relative link; None where there is no such run."""
        return _page_of(self._store, run_id)

    def close(self, status: str, reason: str = "") -> None:
        """Write what is left and end the run; `status` is one of MLflow's, `reason` becomes a tag."""
        if self._system is not None:
            self._system.stop()
            self._metrics += self._system.take()
        self.flush(now=True)
        self._drop_metrics(keep=0)
        self.log_tags({"ended_by": reason} if reason else {})
        self._store.attempt(lambda client: client.set_terminated(self._id, status), "how it ended", now=True)
        self._tell_sinks(lambda run: run.end(status), "how it ended", now=True, limit_s=UPLOAD_PATIENCE_S)
        for store in (self._store, *(store for store, _ in self._sinks)):
            store.report_lost()

    def flush(self, now: bool = False) -> None:
        """Write the metrics collected so far, as before a checkpoint: what goes on from it logs them no more.

        With `now` it is tried even where the store has just failed.
        """

        def write(client: MlflowClient) -> int:
            from mlflow.entities import Metric

            batch = self._metrics[:_METRICS_PER_BATCH]
            client.log_batch(self._id, [Metric(*metric) for metric in batch])
            return len(batch)

        self._flushed_at = time.monotonic()
        while self._metrics:
            written = self._store.attempt(write, now=now)
            if written is None:
                self._drop_metrics(keep=METRICS_KEPT_WHILE_AWAY)
                return
            del self._metrics[:written]

    def _drop_metrics(self, keep: int) -> None:
        """Forget the oldest metrics that could not be written, but for so many."""
        if (too_many := len(self._metrics) - keep) > 0:
            del self._metrics[:too_many]
            if self.run_id is not None:
                self._store.lost["metric values"] += too_many


class Tracker:
    """Opens the runs of chains and stages in one MLflow experiment, and those of stages in the sinks."""

    def __init__(
        self,
        store: _Store[MlflowClient],
        experiment_id: str,
        name: str,
        sinks: Sequence[_Store[Sink]] = (),
    ) -> None:
        self._store = store
        self._sinks = sinks
        self._experiment_id = experiment_id
        self.store_name = name
        """Where runs are recorded: `workspace`, an address, or `none`."""

    def open_chain(self, name: str, tags: Mapping[str, object] | None = None) -> str | None:
        """Start the run that stages nest under; return its id, or None where nothing is recorded.

        A tag `NOTE_TAG` is its description. Sinks, which have no chains, group stages by the id.
        """
        chain_run_id = self._create_run(name, "chain", _as_tags(tags))
        return chain_run_id or (uuid.uuid4().hex if self._sinks else None)

    def close_chain(self, chain_run_id: str | None, error: BaseException | None = None) -> None:
        """End a chain run: finished, failed by `error`, or killed where that is the user's Ctrl-C."""
        if chain_run_id:
            status = _ending(error)
            self._store.attempt(
                lambda client: (
                    _find_run(client, chain_run_id) and client.set_terminated(chain_run_id, status)
                ),
                "how the chain ended",
                now=True,
            )
            self._store.report_lost()

    def end_dead(self, run_ids: Iterable[str]) -> None:
        """Call runs killed whose process is gone, where the store still calls them running."""

        def end(client: MlflowClient, run_id: str) -> None:
            if (run := _find_run(client, run_id)) and run.info.status == "RUNNING":
                client.set_terminated(run_id, "KILLED")

        for run_id in run_ids:
            self._store.attempt(lambda client, run_id=run_id: end(client, run_id))

    def tag_run(self, run_id: str, tags: Mapping[str, object]) -> None:
        """Add tags to a run that has ended, where the store has it."""

        def write(client: MlflowClient) -> None:
            if _find_run(client, run_id):
                for key, value in _as_tags(tags).items():
                    client.set_tag(run_id, key, value)

        self._store.attempt(write, f"tags of run {run_id}", now=True)

    def page_of(self, run_id: str | None) -> str | None:
        """Return where MLflow's UI has a run's page, as a relative link; None where there is no such run."""
        return _page_of(self._store, run_id)

    def report_lost(self) -> None:
        """Say what was not recorded."""
        for store in (self._store, *self._sinks):
            store.report_lost()

    def log_chain_file(self, chain_run_id: str | None, path: Path) -> None:
        """Copy a file among the artifacts of a chain run, in place of an earlier one of its name."""
        if chain_run_id:
            self._store.attempt(
                lambda client: (
                    _find_run(client, chain_run_id) and client.log_artifact(chain_run_id, str(path))
                ),
                path.name,
                limit_s=UPLOAD_PATIENCE_S,
            )

    @contextmanager
    def stage(
        self,
        stage: str,
        *,
        name: str,
        chain_run_id: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, object] | None = None,
        watched: bool = False,
        sink_ids: Mapping[str, str] | None = None,
    ) -> Iterator[StageRun]:
        """Record the `with` block as one run: finished, failed, or killed where the user stopped it.

        Args:
            stage: A tag of the run.
            name: Of the run, usually the artifact's.
            chain_run_id: The chain run to nest under; None makes a run of its own.
            run_id: A run to go on with; where the store does not have it, a new one is made.
            tags: More of them; `NOTE_TAG` is the run's description.
            watched: Record what the machine's processors, memory and GPUs do meanwhile. It costs
                milliseconds now and then, which would be seen in a measurement of time.
            sink_ids: What sinks called a run to go on with, by their names.
        """

        def reopen(client: MlflowClient) -> int | None:
            if run_id is None or (run := _find_run(client, run_id)) is None:
                return None
            client.update_run(run_id, status="RUNNING")
            return run.info.start_time

        begun_ms = self._store.attempt(reopen, now=True) if run_id else None
        if begun_ms is None:
            begun_ms = time.time_ns() // 1_000_000
            parent = {"mlflow.parentRunId": chain_run_id} if chain_run_id else {}
            run_id = self._create_run(name, stage, {**_as_tags(tags), **parent})
        store = self._store if run_id else NullTracker()._store
        system = watch_system(begun_ms) if watched and run_id else None
        told = {key: value for key, value in _as_tags(tags).items() if key != NOTE_TAG}
        sinks = []
        for each in self._sinks:
            earlier = (sink_ids or {}).get(each.client.name) if each.client else None
            recorded = RecordedStage(name, stage, chain_run_id, told, earlier, watched)
            begun = each.attempt(
                lambda sink, recorded=recorded: sink.begin(recorded),
                f"the run of {name}",
                now=True,
                limit_s=SINK_PATIENCE_S,
            )
            if begun is not None:
                sinks.append((each, begun))
        run = StageRun(store, run_id, chain_run_id, system, sinks)
        try:
            yield run
        except BaseException as error:
            run.close(_ending(error), f"{type(error).__name__}: {error}")
            raise
        run.close(_ending(None))
        self.report_lost()  # a run that could not be begun

    def _create_run(self, name: str, stage: str, tags: dict[str, str]) -> str | None:
        source = {"mlflow.source.name": f"pipeline {stage}", "mlflow.source.type": "JOB"}
        tags = {"stage": stage, "mlflow.user": _user_name(), **source, **tags}
        run = self._store.attempt(
            lambda client: client.create_run(self._experiment_id, tags=tags, run_name=name),
            f"the run of {name}",
            now=True,
        )
        return run.info.run_id if run else None


class NullTracker(Tracker):
    """The same surface without MLflow, recording nothing, or what the sinks take."""

    def __init__(self, sinks: Sequence[_Store[Sink]] = ()) -> None:
        super().__init__(_Store(None, _warn_on_stderr, _say_on_stderr), "", UNTRACKED, sinks)


def open_tracker(
    workspace_root: Path, warn: Callable[[str], None] | None = None, say: Callable[[str], None] | None = None
) -> Tracker:
    """Return the tracker of a workspace, its store made ready.

    It is a NullTracker without MLflow, where MLFLOW_TRACKING_URI is `none`, and where the store has no
    room. `warn` takes the one warning about a store that fails later, `say` lines about what is waited for
    and what was not recorded; both go to standard error by default.

    Raises:
        UserError: The store cannot be opened or its server cannot be reached; or a sink that is named does
            not exist or cannot be used.
    """
    warn, say = warn or _warn_on_stderr, say or _say_on_stderr
    sinks = [_Store(sink, warn, say, sink.title) for sink in open_sinks(workspace_root)]
    if not mlflow_is_installed() or is_untracked():
        return NullTracker(sinks)
    try:
        client, experiment_id = open_store(workspace_root, say)
    except FullStoreError as error:  # as when it fills up later: no reason to end the work
        warn(f"{error} This run goes on untracked.")
        return NullTracker(sinks)
    return Tracker(_Store(client, warn, say), experiment_id, store_name(), sinks)


def _ending(error: BaseException | None) -> str:
    """Return MLflow's status of a run that ended with `error`; None: it ended well."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, StoppedByUser | KeyboardInterrupt) else "FAILED"


def _page_of(store: _Store[MlflowClient], run_id: str | None) -> str | None:
    run = store.attempt(lambda client: _find_run(client, run_id)) if run_id else None
    return f"#/experiments/{run.info.experiment_id}/runs/{run_id}" if run else None


def _find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run; None where this store does not have it."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _write_params(client: MlflowClient, run_id: str, settings: Mapping[str, Any], again: str) -> None:
    """Write settings as parameters of a run; where it has another value, write a tag `again.<key>`."""
    from mlflow.entities import Param, RunTag

    values = {key: str(value)[:_PARAM_LENGTH] for key, value in _flatten(settings)}
    known = client.get_run(run_id).data.params
    params = [Param(key, value) for key, value in values.items() if key not in known]
    for start in range(0, len(params), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=params[start : start + _PARAMS_PER_BATCH])
    changed = {f"{again}.{key}": value for key, value in values.items() if known.get(key, value) != value}
    if changed:
        client.log_batch(run_id, tags=[RunTag(*tag) for tag in _as_tags(changed).items()])


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield _clean_key(f"{prefix}{key}"), value


def _clean_key(key: str) -> str:
    """Replace what MLflow refuses in names of metrics, parameters and tags."""
    return re.sub(r"[^\w.\-/ :]", "_", key)


def _as_tags(tags: Mapping[str, object] | None) -> dict[str, str]:
    return {_clean_key(key): str(value)[:_TAG_LENGTH] for key, value in (tags or {}).items()}


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "unknown"


def _warn_on_stderr(text: str) -> None:
    _say_on_stderr(f"Warning: {text}")


def _say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr)
