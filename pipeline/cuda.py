"""Whether a training can run on CUDA here: what the NVIDIA driver, torch and Warp say.

    python -m thousandfold.pipeline.cuda

prints what is found. Where something is missing it says what, and what would do, and exits with 2.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# What the driver, native and under WSL, puts into the file system: a look that costs nothing.
_DEVICE_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
_RELEASE_FILE = Path("/sys/module/nvidia/version")
# The first driver that runs a major version of CUDA, all of its minor versions included.
# Source: "CUDA Compatibility" by NVIDIA, minor version compatibility.
_FIRST_DRIVERS = {12: "525", 13: "580"}
_LEAST_ARCHITECTURE = 75  # of Warp built for CUDA 13


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver.

    Attributes:
        release: such as 580.65.06; None where the system does not tell, as under WSL.
        cuda: the newest CUDA that it runs, such as (13, 0).
    """

    release: str | None
    cuda: tuple[int, int]


def has_driver_files() -> bool:
    """Tell whether the file system has what a driver puts there."""
    return any(path.exists() for path in _DEVICE_FILES)


def installed_driver() -> Driver | None:
    """Return the driver, as its own library tells; None where there is none to load."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    release = _RELEASE_FILE.read_text(encoding="utf-8").strip() if _RELEASE_FILE.is_file() else None
    return Driver(release, (version.value // 1000, version.value % 1000 // 10))


@cache
def cuda_problem() -> str | None:
    """Return what is missing, each with what would do, on one line; None where CUDA can be used.

    Warp, which takes a second to load, is asked where there is a driver.
    """
    import torch

    torch_name = f"torch {torch.__version__}"
    built_for = {torch_name: _version(torch.version.cuda)}
    driver, warp = installed_driver(), None
    if driver is not None:
        warp = _load_warp()
        built_for[f"Warp {warp.__version__}"] = warp.get_cuda_toolkit_version()
    missing = [
        f"{name} is built without CUDA (install {name.partition('+')[0]} as it is on PyPI)"
        for name, cuda in built_for.items()
        if cuda is None
    ]
    needed = max((cuda[0] for cuda in built_for.values() if cuda is not None), default=13)
    if driver is None:
        missing.append(
            f"no NVIDIA driver can be loaded (install {_driver_for(needed)}; a container wants --gpus all)"
        )
    elif driver.cuda[0] < needed:
        newer = [
            f"{name} is built for {_dotted(cuda)}"
            for name, cuda in built_for.items()
            if cuda is not None and cuda[0] > driver.cuda[0]
        ]
        missing.append(
            f"{_named(driver)} runs CUDA up to {_dotted(driver.cuda)}, but {' and '.join(newer)} "
            f"(install {_driver_for(needed)})"
        )
    if missing or driver is None or warp is None:
        return "; ".join(missing)
    if not torch.cuda.is_available():
        return f"{torch_name} sees no device beside {_named(driver)} ({_why_torch_sees_none()})"
    if not warp.is_cuda_available():
        return (
            f"Warp {warp.__version__} sees no device, though torch sees one (it is built for CUDA "
            f"{_dotted(warp.get_cuda_toolkit_version())}: install {_driver_for(needed)}, or warp-lang anew)"
        )
    device = warp.get_cuda_devices()[0]
    known = [int(found[1]) for arch in torch.cuda.get_arch_list() if (found := re.match(r"sm_(\d+)", arch))]
    least = max(_LEAST_ARCHITECTURE, min(known, default=0))
    if device.arch < least:
        return (
            f"{device.name} has compute capability {device.arch / 10}, and {torch_name} with "
            f"Warp {warp.__version__} needs {least / 10} or newer (take another GPU)"
        )
    return None


def describe_device(device: str) -> dict[str, Any]:
    """Return what a manifest says of the device that a stage computes on.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:<index>``, resolved.
    """
    if device == "cpu":
        return {"device": device}
    import torch

    driver, properties = installed_driver(), torch.cuda.get_device_properties(device)
    return {
        "device": device,
        "gpu": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": driver and driver.release,
        "driver_cuda": driver and _dotted(driver.cuda),
        "torch_cuda": torch.version.cuda,
    }


def kernel_cache() -> Path:
    """Return the folder that Warp keeps compiled kernels in, for the next time."""
    warp = _load_warp()
    warp.init()
    return Path(warp.config.kernel_cache_dir)


def _load_warp() -> Any:
    """Return Warp, which prints a banner when it starts unless it is told not to before."""
    import warp

    warp.config.log_level = max(warp.config.log_level, warp.LOG_ERROR)
    return warp


def _why_torch_sees_none() -> str:
    import torch

    said = "no reason is given"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        said = " ".join(str(error).split(".")[0].split())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"{said}; " + (
        "see what nvidia-smi lists" if visible is None else f"CUDA_VISIBLE_DEVICES is {visible!r}: unset it"
    )


def _driver_for(cuda_major: int) -> str:
    first = _FIRST_DRIVERS.get(cuda_major)
    return f"driver {first} or newer" if first else f"one that runs CUDA {cuda_major}"


def _named(driver: Driver) -> str:
    return f"NVIDIA driver {driver.release}" if driver.release else "the NVIDIA driver"


def _version(text: str | None) -> tuple[int, int] | None:
    """Return ``13.0`` as (13, 0)."""
    if text is None:
        return None
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def main() -> None:
    """Print the device, or what is missing for one."""
    if (problem := cuda_problem()) is not None:
        print(f"Error: CUDA cannot be used: {problem}.", file=sys.stderr)
        sys.exit(2)
    import torch

    for index in range(torch.cuda.device_count()):
        facts = describe_device(f"cuda:{index}")
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"Warp keeps compiled kernels in {kernel_cache()}.")


if __name__ == "__main__":
    main()
