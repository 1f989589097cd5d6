"""Make a virtual environment with pip, also where python3 came without ensurepip.

Debian splits `ensurepip` into python3-venv. Where it is missing, the environment is made without
pip and a pinned, checksummed pip wheel installs itself into it. Standard library only.

Usage: python3 .ci/make_venv.py DIRECTORY
"""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import urllib.request
import venv
from pathlib import Path

PIP_URL = (
    "https://files.pythonhosted.org/packages/07/25/"
    "ee8c38ae72d66b844ce8eb9711ba905dba21ca1a8a0c960057c41cd23337/pip-26.3-py3-none-any.whl"
)
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"


def install_pip(python: Path) -> None:
    """Let the pinned pip wheel install itself."""
    with urllib.request.urlopen(PIP_URL, timeout=60) as answer:
        wheel = answer.read()
    if hashlib.sha256(wheel).hexdigest() != PIP_SHA256:
        sys.exit(f"{PIP_URL}: checksum differs from the pinned one; nothing was installed")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PIP_URL.rsplit("/", 1)[1]
        path.write_bytes(wheel)
        subprocess.run([python, path / "pip", "install", "--quiet", str(path)], check=True)


def main() -> None:
    """Make the environment named on the command line."""
    if sys.version_info < (3, 11):  # noqa: UP036 - runs before anything was checked
        sys.exit(
            f"kvtrace needs Python 3.11 or newer, this is {sys.version.split()[0]}: "
            "name another one with `make PYTHON=python3.12 demo`"
        )
    target = Path(sys.argv[1])
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    venv.create(target, with_pip=has_ensurepip, clear=True, symlinks=True)
    if not has_ensurepip:
        install_pip(target / "bin" / "python")


if __name__ == "__main__":
    main()
