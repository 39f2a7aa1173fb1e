"""Opens a page in headless Chromium, where one is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in _NAMES if (path := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(BROWSER is None, reason=f"needs one of {', '.join(_NAMES)}")

_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--force-device-scale-factor=1",
)  # fmt: skip


def screenshot(page: Path, fragment: str, folder: Path, *, dark: bool = False) -> np.ndarray:
    """The page as it is drawn, uint8 [height, width, 3]."""
    picture = folder / f"{fragment}{'-dark' if dark else ''}.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    _run(page, fragment, folder, scheme, f"--screenshot={picture}")
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def dom(page: Path, fragment: str, folder: Path, *, width: int = 1200) -> str:
    """The page's elements after its script has run, as HTML."""
    return _run(page, fragment, folder, "--dump-dom", "--virtual-time-budget=1000", width=width)


def _run(page: Path, fragment: str, folder: Path, *options: str, width: int = 1200) -> str:
    assert BROWSER is not None
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    address = f"{page.as_uri()}#{fragment}"
    size = f"--window-size={width},1000"
    command = [BROWSER, *_OPTIONS, size, f"--user-data-dir={profile}", *options, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
