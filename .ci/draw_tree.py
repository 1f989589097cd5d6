"""Draw the tree in ARCHITECTURE.md from the first sentence of every module.

Usage: python .ci/draw_tree.py (after adding, moving or removing a module). A test holds the
drawing against the folders.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("kvtrace", "tui/kvtrace_tui", "fixtures/kvtrace_fixtures")
COLUMN = 28


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(text.split("\n\n", 1)[0].split())
    return re.split(r"(?<=[^.])\. (?=[A-Z`])", first)[0].rstrip(".")


def lines(folder: Path, name: str, depth: int) -> list[str]:
    """A folder, its modules, its sub-folders."""
    out = [_line(name + "/", sentence(folder / "__init__.py"), depth)]
    for path in sorted(folder.glob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            out.append(_line(path.name, sentence(path), depth + 1))
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").exists():
            out += lines(path, path.name, depth + 1)
    return out


def _line(name: str, what: str, depth: int) -> str:
    return f"{'  ' * depth}{name}".ljust(COLUMN) + f" {what}".rstrip()


def main() -> None:
    """Replace the ```tree block."""
    drawn: list[str] = []
    for package in PACKAGES:
        *parents, name = package.split("/")
        drawn += [f"{parent}/" for parent in parents]
        drawn += lines(ROOT / package, name, len(parents))
    page = ROOT / "ARCHITECTURE.md"
    block = "```tree\n" + "\n".join(drawn) + "\n```"
    page.write_text(re.sub(r"```tree\n.*?```", lambda _: block, page.read_text(), flags=re.S))


if __name__ == "__main__":
    main()
