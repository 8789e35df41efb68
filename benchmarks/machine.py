"""Where a result was measured: what each row says of the machine, the software and the source."""

import datetime
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import vae_fast

HERE = Path(__file__).resolve().parent


def describe(device: torch.device) -> dict[str, str | float | None]:
    """The fields of every row of a run on `device`; "unknown" for what the machine does not say."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": _device_name(device),
        "kind": device.type,
        "driver": _driver(device),
        "cuda": torch.version.cuda or (f"HIP {torch.version.hip}" if torch.version.hip else "none"),
        **versions("triton"),
        "commit": commit(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def versions(*packages: str) -> dict[str, str]:
    """Of vae_fast, Python and torch, and of what else is named: "not installed" where it is not."""
    return {
        "vae_fast": vae_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,  # with the build, which its metadata may lack
        **{package: _version(package) for package in packages},
    }


def folder_name(description: dict[str, str]) -> str:
    """A name for the folder of a device's results: "nvidia-h200", "cpu-intel-xeon-processor"."""
    words = re.sub(r"\([^)]*\)", "", description["device"]).lower()
    slug = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    return slug if description["kind"] == "cuda" else f"cpu-{slug}"


def all_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device_name(device):
    if device.type == "cuda":  # PyTorch finds no name where a card's table of names is not installed
        return torch.cuda.get_device_name(device) or torch.cuda.get_device_properties(device).gcnArchName
    return f"{_processor()}, {all_threads()} cores"


def _processor():
    lines = _text("/proc/cpuinfo").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _text(path):
    """Of a file of Linux's, "" where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _driver(device):
    if device.type != "cuda":
        return "none"
    if torch.version.hip:
        return _text("/sys/module/amdgpu/version").strip() or f"Linux {platform.release()}"  # or the kernel's own
    return _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown"


def commit():
    """The commit of the source, "-dirty" if it was changed since. VAE_FAST_COMMIT says it for a copy without git.

    Results are no source: a run writes them before its report says at which commit it was.
    """
    if os.environ.get("VAE_FAST_COMMIT"):
        return os.environ["VAE_FAST_COMMIT"]
    # An installed package may lie inside the repository of somebody else.
    if not _first_line("git", "-C", HERE, "ls-files", "--", Path(__file__).name):
        return "unknown"
    said = _first_line("git", "-C", HERE, "describe", "--always", "--abbrev=12", "--exclude=*")
    changed = _first_line("git", "-C", HERE, "diff", "--name-only", "HEAD", "--", ":/", ":(exclude)results")
    return f"{said}{'-dirty' * bool(changed)}" or "unknown"


def _first_line(*command):
    """What a command says first, "" if it cannot."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.partition("\n")[0].strip()
