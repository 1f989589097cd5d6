"""How the sequences of a run hang together: where they part, what was rejected, what died out.

Beams take over each other's rows, sampled sequences share their prompt, speculation goes on from
fewer tokens than it was given: all of it is one tree of token runs. Sequences that hold the same
tokens are one branch until they part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from msgspec import Struct
from msgspec.structs import replace

from kvtrace.analysis.rows.writers import Writers
from kvtrace.errors import KvtraceError
from kvtrace.trace import Step, Trace

Place = tuple[int, int]
"""(step, sequence)."""

_Places = Sequence[int]
"""Positions of a node's tokens."""

_Joint = tuple[int, int]
"""A node, and how many of its tokens stay."""


class Node(Struct, frozen=True):
    """The tokens that one step took in for one branch, or some of them, where others go on earlier.

    Attributes:
        step, sequence: The first that holds it.
        parent: Index of the node it goes on from; -1: it begins a text.
        tokens: Ids, without padding.
        kept: How many of them were gone on with; the rest was rejected.
        height: Steps that follow on the longest way on.
    """

    step: int
    sequence: int
    parent: int
    tokens: tuple[int, ...]
    kept: int
    height: int = 0

    @property
    def rejected(self) -> int:
        """Tokens that were computed and given up."""
        return len(self.tokens) - self.kept


class Branches(Struct, frozen=True):
    """The tree.

    Attributes:
        nodes: A parent comes before its children.
        places: The node of every (step, sequence).
        origins: Of every (step, sequence): the sequence of the step before that it took over.
    """

    nodes: tuple[Node, ...]
    places: Mapping[Place, int]
    origins: Mapping[Place, int]

    def children(self) -> list[list[int]]:
        """Nodes that go on from each node, the one with the longest way on last."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            if node.parent >= 0:
                found[node.parent].append(index)
        for nodes in found:
            nodes.sort(key=lambda index: (self.nodes[index].height, -index))
        return found

    def line(self, step: int, sequence: int) -> list[int]:
        """Nodes from the beginning of a text to this place, and on along the longest way."""
        at = self.places.get((step, sequence), -1)
        if at < 0:
            return []
        path = [at]
        while self.nodes[path[0]].parent >= 0:
            path.insert(0, self.nodes[path[0]].parent)
        following = self.children()
        while following[path[-1]]:
            path.append(following[path[-1]][-1])
        return path


def branches(trace: Trace) -> Branches:
    """The tree of a whole run; steps that can't be read are left out."""
    nodes: list[Node] = []
    joins: list[int] = []
    held: list[_Places] = []
    places: dict[Place, int] = {}
    origins: dict[Place, int] = {}
    known: dict[tuple[int, int, int, tuple[int, ...]], int] = {}
    roots: list[int] = []
    writers = Writers()
    for number in trace.numbers:
        try:
            step = trace.step(number)
        except KvtraceError:
            continue
        joined = writers.joined(step)
        writers.add(step)
        for sequence, origin in enumerate(_origins(trace, step)):
            origins[number, sequence] = origin
            parent = -1 if step.parent is None else places.get((step.parent, origin), -1)
            writer = -1 if joined is None else places.get(joined[sequence] or (-1, -1), -1)
            if writer >= 0 and (parent < 0 or roots[writer] != roots[parent]):
                parent = writer  # the rows that are gone on with are another text's
            pairs = list(zip(step.tokens[sequence], step.positions[sequence], strict=True))
            tokens = tuple(token for token, position in pairs if position >= 0)
            first = min((position for _, position in pairs if position >= 0), default=0)
            parent, join = _joint(nodes, held, parent, first)
            if parent >= 0 and not join:
                parent, join, tokens = _fed_again(nodes, joins, parent, tokens)
            begun = number if parent < 0 else -1
            index = known.setdefault((parent, join, begun, tokens), len(nodes))
            if index == len(nodes):
                nodes.append(Node(number, sequence, parent, tokens, 0))
                joins.append(join)
                held.append([position for _, position in pairs if position >= 0][-len(tokens) :])
                roots.append(index if parent < 0 else roots[parent])
            places[number, sequence] = index
            if parent >= 0:
                _keep(nodes, parent, join)
    parted, ends = _parted(nodes, joins)
    here = {place: ends[index] for place, index in places.items()}
    return Branches(_with_heights(parted), here, origins)


def _joint(nodes: Sequence[Node], held: Sequence[_Places], parent: int, first: int) -> _Joint:
    """Where tokens from a position on join a branch: a node, and how many of its tokens stay.

    Steps of which nothing stays were taken back whole: what comes now goes on from before them.
    """
    at = parent if first > 0 else -1
    while at >= 0:
        stay = sum(position < first for position in held[at])
        if stay:
            return at, stay
        at = nodes[at].parent
    return parent, 0


def _fed_again(
    nodes: Sequence[Node], joins: Sequence[int], parent: int, tokens: tuple[int, ...]
) -> tuple[int, int, tuple[int, ...]]:
    """Where a text goes on that is fed from its beginning again, as models without a cache are.

    Returns:
        The node that it goes on from, how many tokens of that stay, and the tokens that are new.
    """
    path: list[tuple[int, tuple[int, ...]]] = []
    at, stop, count = parent, len(nodes[parent].tokens), 0
    while at >= 0 and count < len(tokens):  # no more of the line than can be told by these tokens
        path.append((at, nodes[at].tokens[:stop]))
        count += stop
        at, stop = nodes[at].parent, joins[at]
    path.reverse()
    line = [token for _, part in path for token in part]
    if 1 < len(tokens) <= count and list(tokens[:-1]) == line[1 - len(tokens) :]:
        return parent, len(nodes[parent].tokens), tokens[-1:]  # its end alone fits the model
    if at >= 0:
        return parent, 0, tokens
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(line, tokens, strict=False))
    same = left = sum(1 for _ in alike)
    for index, part in path:
        if 0 < left <= len(part) and same < len(tokens):
            return index, left, tokens[same:]
        left -= len(part)
    return parent, 0, tokens


def _parted(nodes: Sequence[Node], joins: Sequence[int]) -> tuple[list[Node], list[int]]:
    """Nodes in pieces, so that what goes on from the middle of one follows only its beginning.

    Args:
        nodes: As steps took tokens in.
        joins: For each of them: how many tokens of its parent stay before it.

    Returns:
        The pieces, and for each node the index of its last one.
    """
    cuts: dict[int, set[int]] = {}
    for node, join in zip(nodes, joins, strict=True):
        if node.parent >= 0 and 0 < join < nodes[node.parent].kept:
            cuts.setdefault(node.parent, set()).add(join)
    pieces: list[Node] = []
    ends: list[int] = []
    upto: dict[tuple[int, int], int] = {}
    for index, (node, join) in enumerate(zip(nodes, joins, strict=True)):
        parent = -1 if node.parent < 0 else upto.get((node.parent, join), ends[node.parent])
        start = 0
        for stop in sorted(cuts.get(index, ())):
            upto[index, stop] = len(pieces)
            shared = node.tokens[start:stop]
            pieces.append(replace(node, parent=parent, tokens=shared, kept=len(shared)))
            parent, start = len(pieces) - 1, stop
        ends.append(len(pieces))
        rest = node.tokens[start:]
        pieces.append(replace(node, parent=parent, tokens=rest, kept=max(node.kept - start, 0)))
    return pieces, ends


def _origins(trace: Trace, step: Step) -> Sequence[int]:
    """For each sequence of a step: which one of its parent's it goes on from."""
    count = step.num_sequences
    rows = list(step.order or range(count))
    if step.parent is None:
        return rows
    try:
        before = trace.step(step.parent).num_sequences
    except KvtraceError:
        return rows
    if before < count and not any(event.order for event in step.events):
        times = count // before if before else 1
        return [row // max(times, 1) for row in rows]
    return rows


def _keep(nodes: list[Node], index: int, count: int) -> None:
    node = nodes[index]
    if count > node.kept:
        nodes[index] = replace(node, kept=min(count, len(node.tokens)))


def _with_heights(nodes: list[Node]) -> tuple[Node, ...]:
    heights = [0] * len(nodes)
    followed = [False] * len(nodes)
    for index in range(len(nodes) - 1, -1, -1):
        parent = nodes[index].parent
        if parent >= 0:
            followed[parent] = True
            heights[parent] = max(heights[parent], heights[index] + 1)
    return tuple(
        replace(node, height=height, kept=node.kept if goes_on else len(node.tokens))
        for node, height, goes_on in zip(nodes, heights, followed, strict=True)
    )


class Twig(Struct, frozen=True):
    """A run of nodes without a parting, as one line of the drawn tree.

    Attributes:
        lead: What stands before it: "│ ├╴".
        nodes: Indices, in order.
    """

    lead: str
    nodes: tuple[int, ...]


def twigs(found: Branches) -> list[Twig]:
    """The tree line by line: what parts is indented, the longest way goes on at the margin."""
    following = found.children()
    lines: list[Twig] = []
    roots = [index for index, node in enumerate(found.nodes) if node.parent < 0]
    pending = [(root, "", "") for root in reversed(roots)]
    while pending:
        at, margin, lead = pending.pop()
        run = [at]
        while len(following[run[-1]]) == 1:
            run.append(following[run[-1]][0])
        lines.append(Twig(margin + lead, tuple(run)))
        parted = following[run[-1]]
        inner = margin + ("│ " if lead else "")
        if parted:
            pending.append((parted[-1], inner, ""))
            pending += [(child, inner, "├╴") for child in reversed(parted[:-1])]
    return lines
