"""Processes that work as one, started by torchrun: who they are, what they share, what they tell one another.

    torchrun --nproc-per-node 2 --no-python pipeline train-teacher

Every rank runs the same command. Rank 0 leads: it alone writes artifacts, tracks and talks. A process that
was started by itself is `Ranks()`, one rank of one: everything here returns at once and changes nothing.

Numbers travel as tensors and text as their bytes; nothing is pickled. Torch is imported when ranks connect.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from thousandfold.ground.errors import LostRankError, SettingsError, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TIMEOUT_VARIABLE = "THOUSANDFOLD_RANK_TIMEOUT_S"
DEFAULT_TIMEOUT_S = 3600.0
"""How long a rank waits for the others: longer than the longest evaluation, which rank 0 runs alone."""

_GRACE_S = 5.0
# Tensors below this many numbers travel together: a call each would cost more than the copy.
_LARGE = 1 << 16
# What gloo, its store and NCCL say when a peer is gone; a wrong shape must not pass for a lost rank.
_SILENCE = re.compile(r"timed? ?out", re.I)
_END = re.compile(
    r"connection (?:closed|reset|refused|was)|broken pipe|gloo/transport|nccl communicator", re.I
)

Value = TypeVar("Value")


class Ranks:
    """The processes of one run, seen from one of them.

    Attributes:
        rank, size: this process and how many there are, over all machines.
        local_rank, local_size: the same on this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self._store: Any = None
        self._connected = False
        self._group: Any = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """Return what torchrun's variables say. Raises UserError where they say half of it."""
        size = environment.get("WORLD_SIZE", "1")
        if size == "1":
            return cls()
        try:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
            return cls(*(int(environment[name]) for name in names))
        except (KeyError, ValueError):
            raise UserError(
                f"WORLD_SIZE is {size!r}, but not all of RANK, LOCAL_RANK and LOCAL_WORLD_SIZE are numbers: "
                "start several processes with torchrun, or unset WORLD_SIZE."
            ) from None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes, tracks and talks."""
        return self.rank == 0

    @property
    def stream(self) -> tuple[int, ...]:
        """What a rank adds to a stream of randomness: rank 0 nothing, so it draws what one process does."""
        return (self.rank,) if self.rank else ()

    @property
    def launcher(self) -> str:
        """What stands before `pipeline` in a command that starts as many ranks."""
        if self.size == 1:
            return ""
        machines = self.size // self.local_size
        meeting = "--rdzv-backend c10d --rdzv-endpoint HOST:PORT "
        several = f"--nnodes {machines} {meeting}" if machines > 1 else ""
        return f"torchrun {several}--nproc-per-node {self.local_size} --no-python "

    def share(self, name: str, total: int, least: int = 1) -> int:
        """Return an even share of a total.

        Args:
            name: of the setting, for the message.
            total: over all ranks.
            least: the smallest share that makes sense.

        Raises:
            SettingsError: it cannot be split evenly; names the nearest numbers that can.
        """
        share, rest = divmod(total, self.size)
        if self.size == 1 or (not rest and share >= least):
            return share
        around = {total - rest, total - rest + self.size}
        fitting = sorted(number for number in around if number >= least * self.size) or [least * self.size]
        raise SettingsError(
            f"{name} {total} cannot be split evenly over {self.size} ranks"
            f"{f', at least {least} each' if least > 1 else ''}: use {' or '.join(map(str, fitting))}."
        )

    def place(self, device: str) -> str:
        """Return this rank's own device: ``cuda:<local rank>`` for ``cuda``.

        Raises:
            SettingsError: fewer CUDA devices than ranks on this machine.
        """
        if self.size == 1 or device != "cuda":
            return device
        import torch

        if torch.cuda.device_count() < self.local_size:
            raise SettingsError(
                f"{self.local_size} ranks on a machine with {torch.cuda.device_count()} CUDA devices: "
                "start one for each device, or use --device cpu."
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    @contextlib.contextmanager
    def connect(self, device: str) -> Iterator[None]:
        """Join the other ranks for the block: gloo for tensors on the CPU, NCCL for those on CUDA.

        Raises:
            UserError: they do not find one another.
        """
        if self.size == 1:
            yield
            return
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        # Its functions take the group of the moment as a default value. Loaded later, as an optimiser does,
        # it would keep the group and its threads beyond the end, where they abort the process now and then.
        importlib.import_module("torch.distributed.nn.functional")

        timeout = _timeout()
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        try:
            meeting = rendezvous("env://", self.rank, self.size, timeout=timeout)
            self._store, rank, size = next(iter(meeting))
            dist.init_process_group(backend, store=self._store, rank=rank, world_size=size, timeout=timeout)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"Rank {self.rank} does not find the others: {_one_line(error)}") from error
        self._connected = True
        with _deaf_to_sigterm():
            yield
            self.disconnect()

    def disconnect(self) -> None:
        """Part from the other ranks, which all do so at once: what follows, each does by itself."""
        if not self._connected:
            return
        import torch.distributed as dist

        self.barrier()
        self._connected = False
        dist.destroy_process_group()

    def apart(self) -> Ranks:
        """Return the same ranks as another thread is to see them; all ranks call this together.

        What that thread gathers, on the CPU, and the texts it exchanges do not mix with those of this one.
        """
        if self.size == 1:
            return self
        import torch.distributed as dist

        ranks = copy.copy(self)
        ranks._group = dist.new_group(backend="gloo", timeout=_timeout())
        return ranks

    def speaks(self) -> bool:
        """Tell whether this rank is the one to name an error that ends it: the first that asks.

        Before they are connected that is rank 0, and another where rank 0 has not ended the run by then.
        """
        if self.size == 1:
            return True
        if self._store is None:
            time.sleep(0.0 if self.leads else _GRACE_S)
            return True
        try:
            return self._store.add("thousandfold/spoken", 1) == 1
        except RuntimeError:  # the store went down with the machine that kept it
            return True

    def gather(self, tensor: Tensor) -> Tensor:
        """Return every rank's tensor, in order of rank, (size, *shape). All have one shape and type."""
        if self.size == 1 or not tensor.numel():
            return tensor.detach().expand(self.size, *tensor.shape)
        import torch.distributed as dist

        flat = tensor.detach().contiguous().flatten()
        gathered = flat.new_empty(self.size * flat.numel())
        with self._losses():
            dist.all_gather_single(gathered, flat, group=self._group)
        return gathered.view(self.size, *tensor.shape)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Put the sum over all ranks in place of a contiguous tensor, and return it."""
        if self.size > 1:
            import torch.distributed as dist

            with self._losses():
                dist.all_reduce(tensor)
        return tensor

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all ranks in place of contiguous tensors of one type and device."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        small = [tensor for tensor in tensors if tensor.numel() < _LARGE]
        bucket = [torch.cat([tensor.flatten() for tensor in small])] if small else []
        whole = [tensor for tensor in tensors if tensor.numel() >= _LARGE] + bucket
        with self._losses():
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in whole]:
                if work is not None:
                    work.wait()
        for tensor in whole:
            tensor.div_(self.size)
        if small:
            parts = bucket[0].split([tensor.numel() for tensor in small])
            for tensor, part in zip(small, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set on any rank."""
        return flag if self.size == 1 else max(self._numbers(int(flag))) > 0

    def every(self, flag: bool) -> bool:
        """Tell whether the flag is set on every rank."""
        return flag if self.size == 1 else min(self._numbers(int(flag))) > 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    def texts(self, text: str) -> list[str]:
        """Return every rank's text, in order of rank."""
        if self.size == 1:
            return [text]
        import torch

        data = bytearray(text.encode())
        lengths = self._numbers(len(data))
        padded = torch.zeros(max(*lengths, 1), dtype=torch.uint8)
        if data:
            padded[: len(data)] = torch.frombuffer(data, dtype=torch.uint8)
        rows = self.gather(padded)
        return [row[:length].numpy().tobytes().decode() for row, length in zip(rows, lengths, strict=True)]

    def from_leader(self, make: Callable[[], Value]) -> Value:
        """Return what `make` gives on rank 0, where alone it is called; it must fit into JSON."""
        if self.size == 1:
            return make()
        return json.loads(self.texts(json.dumps(make()) if self.leads else "")[0])

    def _numbers(self, number: int) -> list[int]:
        import torch

        return self.gather(torch.tensor(number)).tolist()

    def send(self, matrix: Tensor) -> None:
        """Send a matrix on the CPU to rank 0, which takes it with `receive`."""
        import torch
        import torch.distributed as dist

        with self._losses():
            dist.send(torch.tensor(matrix.shape), 0)
            if matrix.numel():
                dist.send(matrix.contiguous(), 0)

    def receive(self, source: int, dtype: torch.dtype) -> Tensor:
        """Return the next matrix that a rank sent."""
        import torch
        import torch.distributed as dist

        shape = torch.zeros(2, dtype=torch.int64)
        with self._losses():
            dist.recv(shape, source)
            matrix = torch.empty(shape.tolist(), dtype=dtype)
            if matrix.numel():
                dist.recv(matrix, source)
        return matrix

    @contextlib.contextmanager
    def _losses(self) -> Iterator[None]:
        """Turn what the libraries raise when a peer is gone into LostRankError."""
        try:
            yield
        except RuntimeError as error:
            import torch.distributed as dist

            text = str(error)
            if _SILENCE.search(text):
                raise LostRankError(
                    f"A rank did not answer within {_timeout().total_seconds():g} s"
                ) from error
            if _END.search(text) or isinstance(error, dist.DistError):
                raise LostRankError("A rank was lost") from error
            raise


@contextlib.contextmanager
def _deaf_to_sigterm() -> Iterator[None]:
    """Ignore SIGTERM, which torchrun sends to the others when a rank dies: they are to say so first.

    Whoever does not end within half a minute it kills. A stage that can save its state listens itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)  # not after an error, which has yet to be told


def _timeout() -> timedelta:
    """Return how long a rank waits for the others. Raises UserError for what is no number of seconds."""
    text = os.environ.get(TIMEOUT_VARIABLE, str(DEFAULT_TIMEOUT_S))
    try:
        return timedelta(seconds=max(float(text), 1.0))
    except (ValueError, OverflowError):
        raise UserError(f"{TIMEOUT_VARIABLE} must be a number of seconds, not {text!r}.") from None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}…"
