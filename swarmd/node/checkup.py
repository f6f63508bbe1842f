"""What `swarmd doctor` finds on this machine: each with what to do about it."""

from __future__ import annotations

import enum
import errno
import os
import platform
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from swarmd.compute.manifest import cache_root
from swarmd.compute.model_folder import ModelFolder
from swarmd.config import DEFAULT_PORTS, DaemonConfig
from swarmd.errors import StateError
from swarmd.node.memory_probe import available_memory, memory_plan
from swarmd.running import running_nodes
from swarmd.state import StateFolder

__all__ = ["Finding", "Level", "disk", "memory", "port", "python", "state", "torch_build"]

PYTHONS = ((3, 11), (3, 14))
"""The first Python that swarmd runs on, and the first that it does not (pyproject.toml)."""
LITTLE_DISK = 2 << 30
"""Bytes below which a model may not find room: a warning."""
NO_DISK = 256 << 20
"""Bytes below which hardly any model does."""


class Level(enum.Enum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and what to do where it is not well."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def python() -> Finding:
    version = platform.python_version()
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        low, high = (".".join(map(str, one)) for one in PYTHONS)
        return Finding(
            "python", Level.FAIL, version, f"install Python {low} or later, below {high}"
        )
    return Finding("python", Level.OK, version)


def torch_build(device: str) -> Finding:
    """Which build of torch this is, and whether it uses what the machine has."""
    found = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        return Finding("torch", Level.OK, f"{found}, {torch.cuda.get_device_name(0)}")
    if device != "cpu":
        return Finding(
            "torch", Level.FAIL, f"{found}, no CUDA",
            f"--device {device} needs a build of torch with CUDA and a driver, or use --device cpu",
        )  # fmt: skip
    if Path("/proc/driver/nvidia/version").exists():
        return Finding(
            "torch", Level.WARN, f"{found}, but there is an NVIDIA driver",
            "install the ordinary build of torch, which has CUDA, to use the GPU",
        )  # fmt: skip
    return Finding("torch", Level.OK, f"{found}, CPU only")


def memory(config: DaemonConfig, folder: ModelFolder | None) -> Finding:
    """What is free, and how many blocks of the model fit (None: only what is free)."""
    limit = config.memory or available_memory(config.device)
    found = f"{limit / 1e6:.0f} MB to use"
    if folder is None:
        return Finding("memory", Level.OK, found)
    dtype = "float32" if config.dtype == "auto" else config.dtype
    plan = memory_plan(config, folder, dtype)
    found += (
        f"; {plan.blocks} of the {plan.n_blocks} blocks of {folder.name} fit "
        f"({plan.each_block / 1e6:.0f} MB each in {dtype}, with their cache)"
    )
    if plan.blocks == 0:
        return Finding(
            "memory", Level.FAIL, found,
            "close programs, or serve with --quantize int8, or less --kv-tokens",
        )  # fmt: skip
    return Finding("memory", Level.OK, found)


def port(config: DaemonConfig, state: StateFolder) -> tuple[Finding, int | None]:
    """Whether the port can be had by UDP and TCP, and a free one (None: there is none)."""
    host = "127.0.0.1" if config.host == "localhost" else config.host
    mine = {node.address.port for node in running_nodes(state.path)}
    ports = list(DEFAULT_PORTS) if config.port is None else [config.port]
    taken = []
    for number in ports:
        try:
            _bind(host, number)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                remedy = "give an address of this machine by --host, or another --port"
                found = f"{host} {number}: {error.strerror}"
                return Finding("port", Level.FAIL, found, remedy), None
            taken.append(number)
            continue
        nodes = f"; nodes of yours at {', '.join(map(str, sorted(mine)))}" if mine else ""
        return Finding("port", Level.OK, f"{host} {number}, UDP and TCP, is free{nodes}"), number
    if taken == [config.port] and config.port in mine:
        return Finding("port", Level.OK, f"{config.port} is in use by a node of yours"), None
    shown = str(taken[0]) if len(taken) == 1 else f"{taken[0]} to {taken[-1]}"
    remedy = "stop the program that uses it, or choose another by --port"
    return Finding("port", Level.FAIL, f"{host} {shown}: in use", remedy), None


def _bind(host: str, number: int) -> None:
    """Raises OSError if UDP or TCP is not to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(family, kind) as sock:
            if kind == socket.SOCK_STREAM:  # a port that was served a moment ago is free
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, number))
            if kind == socket.SOCK_STREAM:
                sock.listen(1)


def state(path: Path | None) -> Finding:
    """Whether the state folder can be written, and only by its owner be read."""
    try:
        folder = StateFolder(path)
        folder.slots()
    except StateError as error:
        return Finding("state", Level.FAIL, str(error), "give another folder by --state-dir")
    fault = _unwritable(folder.path)
    if fault is not None:
        remedy = f"make {folder.path} yours, or give another folder by --state-dir"
        return Finding("state", Level.FAIL, f"{folder.path}: {fault}", remedy)
    if os.name == "posix":
        secrets = [folder.path / "identity", *(folder.path / "identity").glob("*.key")]
        for one in secrets:
            if one.exists() and one.stat().st_mode & 0o077:
                mode = "700" if one.is_dir() else "600"
                return Finding("state", Level.FAIL, f"others may read {one}", f"chmod {mode} {one}")
    return Finding("state", Level.OK, str(folder.path))


def disk() -> Finding:
    """Whether the cache of models can be written, and the room there."""
    path = cache_root()
    there = next(one for one in (path, *path.parents) if one.exists())
    fault = _unwritable(there)
    if fault is not None:
        remedy = "name a folder that you may write by $SWARMD_CACHE"
        return Finding("disk", Level.FAIL, f"{path}: {fault}", remedy)
    free = shutil.disk_usage(there).free
    found = f"{path}: {free / 1e9:.1f} GB free"
    if free >= LITTLE_DISK:
        return Finding("disk", Level.OK, found)
    level = Level.FAIL if free < NO_DISK else Level.WARN
    return Finding("disk", level, found, "make room, or name another disk by $SWARMD_CACHE")


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be written there; None if it can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
