"""One thing a key does: its keys, its words, what it does and why it can't."""

from __future__ import annotations

from msgspec import Struct

from kvtrace_tui.desk import reasons
from kvtrace_tui.desk.deeds import Deed
from kvtrace_tui.desk.reasons import Reason

SHOWN = {
    "left": "←", "right": "→", "up": "↑", "down": "↓", "pageup": "pgup", "pagedown": "pgdn",
    "escape": "esc", "ctrl+p": "^p", "shift+tab": "⇧tab", "minus": "−", "plus": "+",
    "left_square_bracket": "[", "right_square_bracket": "]", "left_curly_bracket": "{",
    "right_curly_bracket": "}", "left_parenthesis": "(", "right_parenthesis": ")",
    "slash": "/", "question_mark": "?", "colon": ":", "equals_sign": "=",
}  # fmt: skip


class Action(Struct, frozen=True):
    """Something a key does.

    Attributes:
        id: Its name in code, the palette's key.
        keys: Names of its keys as Textual calls them; none: the palette only.
        title: One or two words for the footer.
        help: A sentence.
        group: Where it stands in the help.
        do: What it does.
        why_not: Why it can't be done now; None when it can.
        weight: Place in the footer, lowest first; 0: not there.
        label: Keys and words in the footer, where they also stand for its opposite.
    """

    id: str
    keys: tuple[str, ...]
    title: str
    help: str
    group: str
    do: Deed
    why_not: Reason = reasons.needs_trace
    weight: int = 0
    label: tuple[str, str] | None = None

    @property
    def shown_keys(self) -> str:
        """The keys as they stand on the keyboard."""
        return " ".join(SHOWN.get(key, key) for key in self.keys)
