"""A user's file without what it does when imported: its imports, definitions and plain values.

For scripts that train or talk at import. A plain value is one whose making can be read off the
code: constants, containers, arithmetic, and calls of a few functions that only look.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

_LOOKING = """
len sorted list set dict tuple range enumerate zip min max sum int float str bool bytes chr ord map
filter open abs round frozenset reversed Path field namedtuple TypeVar NewType dataclass join read
split lower upper strip splitlines format items keys values get copy device is_available getLogger
compile get_encoding encoding_for_model dirname abspath exists expanduser basename resolve
manual_seed Lock read_text is_bf16_supported set_default_dtype partial lru_cache cache
SimpleNamespace Namespace getenv
"""
_CALLS = frozenset(re.findall(r"\w+", _LOOKING))
"""Functions and methods by their last name; what they return may be called so again."""


_ALWAYS = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Pass,
)


@dataclass(slots=True)
class Definitions:
    """The part of a file that is run.

    Attributes:
        tree: The statements that are kept, with their own line numbers.
        skipped: First line of each statement that was left out, and the names it would have made.
    """

    tree: ast.Module
    skipped: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def made_by_skipped(self, name: str) -> int | None:
        """The line that would have made a name."""
        return next((line for line, names in self.skipped.items() if name in names), None)


def definitions_of(code: str, filename: str) -> Definitions:
    """The statements of a file that define something.

    Raises:
        SyntaxError: It is no Python.
    """
    tree = ast.parse(code, filename)
    found = Definitions(ast.Module([], tree.type_ignores))
    classes = {one.name for one in tree.body if isinstance(one, ast.ClassDef)}
    kept = {name for name in classes if "config" in name.lower() or "args" in name.lower()}
    found.tree.body = _kept(tree.body, frozenset(kept), found)
    return found


def _kept(body: list[ast.stmt], classes: frozenset[str], found: Definitions) -> list[ast.stmt]:
    kept: list[ast.stmt] = []
    for one in body:
        if isinstance(one, ast.If) and _is_type_checking(one.test):
            continue
        if _defines(one, classes):
            kept.append(_forgiving(one))
        elif isinstance(one, ast.If) and not _is_main(one.test) and _is_plain(one.test, classes):
            then, other = (_kept(part, classes, found) for part in (one.body, one.orelse))
            if then:
                kept.append(ast.copy_location(ast.If(one.test, then, other), one))
        else:
            found.skipped[one.lineno] = tuple(_names(one))
    return kept


def _defines(one: ast.stmt, classes: frozenset[str]) -> bool:
    """Whether a statement makes something and does nothing else."""
    if isinstance(one, _ALWAYS):
        return True
    if isinstance(one, ast.Expr):
        return isinstance(one.value, ast.Constant)
    if isinstance(one, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return one.value is None or _is_plain(one.value, classes)
    if isinstance(one, ast.Try):
        inner = [*one.body, *(each for handler in one.handlers for each in handler.body)]
        return all(_defines(each, classes) for each in inner)
    if isinstance(one, ast.With):
        read_only = all(_is_plain(each.context_expr, classes) for each in one.items)
        return read_only and all(_defines(each, classes) for each in one.body)
    return False


def _forgiving(one: ast.stmt) -> ast.stmt:
    """A value that can't be made, from a file that is missing perhaps, is left out."""
    if not isinstance(one, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.With):
        return one
    error = ast.Name("Exception", ast.Load())
    handler = ast.ExceptHandler(error, None, [ast.Pass()])
    made = ast.Try([one], [handler], [], [])
    return ast.fix_missing_locations(ast.copy_location(made, one))


def _is_plain(value: ast.expr, classes: frozenset[str]) -> bool:
    """Whether making a value runs nothing but what is known to only look."""
    for node in ast.walk(value):
        if isinstance(node, ast.Await | ast.Yield | ast.YieldFrom):
            return False
        if isinstance(node, ast.Call):
            name = _called(node.func)
            if name not in _CALLS and name not in classes:
                return False
            if name == "open" and not _reads(node):
                return False
    return True


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else ""


def _reads(call: ast.Call) -> bool:
    modes = [one.value for one in call.keywords if one.arg == "mode"] + call.args[1:2]
    return all(
        isinstance(one, ast.Constant) and str(one.value) in ("r", "rb", "rt") for one in modes
    )


def _is_main(test: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(test))


def _is_type_checking(test: ast.expr) -> bool:
    return any(
        getattr(node, "id", getattr(node, "attr", "")) == "TYPE_CHECKING" for node in ast.walk(test)
    )


def _names(one: ast.stmt) -> list[str]:
    """Names that a statement would have made."""
    return [
        node.id
        for node in ast.walk(one)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
