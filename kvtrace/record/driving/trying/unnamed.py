"""What parameters are for whose names say nothing: shown by the author's own calls, or tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec.structs import replace

from kvtrace.record.driving.trying.patterns import Pattern
from kvtrace.record.driving.ways.roles import LABELS, Parameter, Role, Signature

_CONTAINERS = ("list", "tuple", "dict")
_NO_CACHE = ("train", "training", "return_dict")


def shown(signature: Signature, calls: Sequence[Pattern], prompt: int) -> Signature:
    """The signature with the roles that calls of a generation show.

    Args:
        signature: As names tell.
        calls: The prompt at once, then a token; empty where no generation was seen.
        prompt: Tokens of the first call.
    """
    if len(calls) < 2:
        return signature
    roles = {
        one.name: role
        for one in signature.parameters
        if (role := _by_calls(one, calls[0], calls[1], prompt))
    }
    return _with_roles(signature, roles)


def suspected(signature: Signature) -> Iterator[Signature]:
    """Signatures in which such a parameter is for the cache: each of them alone, then all."""
    roles = {one.name: role for one in signature.parameters if (role := _by_default(one))}
    for name, role in roles.items() if len(roles) > 1 else ():
        yield _with_roles(signature, {name: role})
    if roles:
        yield _with_roles(signature, roles)


def _with_roles(signature: Signature, roles: Mapping[str, Role]) -> Signature:
    """With other roles for some parameters."""
    parameters = tuple(
        replace(one, role=roles[one.name], told=True) if one.name in roles else one
        for one in signature.parameters
    )
    return replace(signature, parameters=parameters)


def _by_calls(one: Parameter, first: Pattern, second: Pattern, prompt: int) -> Role | None:
    """What the prompt's call and the next one show; None where they show nothing new."""
    before, after = first.get(one.name), second.get(one.name)
    if one.role == "flag":
        return "flag" if after is True and not one.turns_cache_on else None
    if one.role != "other":
        return None
    if before in (None, 0) and not isinstance(after, bool) and after == prompt:
        return "position"
    places = [(prompt,), (1,)], [(1, prompt), (1, 1)]
    if [before, after] in [[("whole", shape) for shape in pair] for pair in places]:
        return "position"
    kind = after.partition("[")[0] if isinstance(after, str) else None
    return "cache" if kind in _CONTAINERS or (before is None and kind) else None


def _by_default(one: Parameter) -> Role | None:
    """What it may be for, by the kind of its default; None where it is for something else."""
    if one.role == "flag":
        off = one.default is False or one.required
        return "flag" if off and not one.turns_cache_on and one.name not in _NO_CACHE else None
    if one.role != "other" or one.required or LABELS.fullmatch(one.name.lower()):
        return None
    if one.default is None and not one.wants_number:
        return "cache"
    return "position" if one.wants_number and one.default in (None, 0) else None
