"""ARCHITECTURE.md draws the tree; the tree is what is really there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("kvtrace", "tui/kvtrace_tui", "fixtures/kvtrace_fixtures")


def drawn_paths() -> set[str]:
    """Paths of the tree in ARCHITECTURE.md: two spaces of indentation a level."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    tree = re.search(r"```tree\n(.*?)```", text, re.S)
    assert tree, "ARCHITECTURE.md has no ```tree block"
    paths, parents = set(), []
    for line in tree.group(1).splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name.rstrip("/")]
        paths.add("/".join(parents))
    return paths


def test_every_path_drawn_in_the_architecture_exists():
    assert [path for path in drawn_paths() if not (ROOT / path).exists()] == []


def test_every_package_and_module_is_drawn_in_the_architecture():
    drawn = drawn_paths()
    there = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    there |= {Path(path).parent.as_posix() for path in there}
    assert sorted(there - drawn) == []


def test_no_python_file_is_longer_than_400_lines():
    files = [path for folder in (*PACKAGES, "tests") for path in (ROOT / folder).rglob("*.py")]
    long = {str(path.relative_to(ROOT)): n for path in files if (n := _lines(path)) > 400}
    assert long == {}


def _lines(path: Path) -> int:
    with path.open() as lines:
        return sum(1 for _ in lines)
