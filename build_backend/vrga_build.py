"""PEP 517 backend: setuptools, building against the torch that is installed.

Build isolation hides the environment's packages, so that a plain requirement on torch would
download a second torch of several gigabytes, maybe of another version, into a temporary folder.
This backend looks for the installed torch, makes it importable behind the isolated packages, and
asks for one to be downloaded only where none is found.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import site
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta

MIN_TORCH = (2, 11)


def _prefix_paths(prefix: str) -> list[str]:
    """Package folders of one installation prefix."""
    scheme = {"base": prefix, "platbase": prefix}
    paths = [sysconfig.get_path(name, vars=scheme) for name in ("purelib", "platlib")]
    return paths + site.getsitepackages([prefix])


def _sees_system_packages() -> bool:
    """Whether the running environment is none, or one made with --system-site-packages."""
    if sys.prefix == sys.base_prefix:
        return True
    config = Path(sys.prefix, "pyvenv.cfg")
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    return re.search(r"(?mi)^include-system-site-packages\s*=\s*true", text) is not None


def environment_paths() -> list[str]:
    """Package folders of the environment the user installs into, nearest first.

    A frontend may run this hook with the environment's own interpreter (pip) or with one of a
    temporary environment (build, uv); then the activated environment is the user's.
    """
    candidates = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    candidates += _prefix_paths(sys.prefix)
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if prefix := os.environ.get(variable):
            candidates += _prefix_paths(prefix)
    if _sees_system_packages():
        candidates.append(site.getusersitepackages())
        candidates += _prefix_paths(sys.base_prefix)
    existing = (str(Path(path)) for path in candidates if path and Path(path).is_dir())
    return list(dict.fromkeys(existing))


def installed_torch(paths: list[str]) -> str | None:
    """Version of the first torch found in ``paths``."""
    for distribution in importlib.metadata.distributions(name="torch", path=paths):
        return distribution.version
    return None


def _torch_requirement() -> list[str]:
    version = installed_torch(sys.path) or installed_torch(environment_paths())
    wanted = ".".join(map(str, MIN_TORCH))
    if version is None:
        return [f"torch>={wanted}"]
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MIN_TORCH:
        raise RuntimeError(
            f"vrga_ext: wanted torch >= {wanted}, got the installed torch {version}; "
            "upgrade it first"
        )
    return []


def _show_environment() -> None:
    """Append the environment's packages; what the isolated build brought stays in front."""
    sys.path += [path for path in environment_paths() if path not in sys.path]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    return build_meta.get_requires_for_build_sdist(config_settings)


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    _show_environment()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    _show_environment()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


# setup.py needs no torch for these.
build_sdist = build_meta.build_sdist
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable
