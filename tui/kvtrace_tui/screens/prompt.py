"""One line of input at the foot of the screen."""

from __future__ import annotations

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.widgets import Input, Static

from kvtrace.text import safe
from kvtrace_tui.screens.once import LeavesOnce


class PromptScreen(LeavesOnce[str | None]):
    """A question and a line for the answer; None when the user goes back."""

    CSS = """
    PromptScreen { background: transparent; align: left bottom; layout: vertical; }
    #question { height: 1; width: 1fr; background: #18202b; color: #f2b84b; }
    #answer { height: 1; width: 1fr; border: none; padding: 0 1; background: #222b38;
              color: #f1f5fa; }
    """
    BINDINGS = [  # noqa: RUF012 - Textual's own form
        Binding("escape", "leave", show=False),
        Binding("ctrl+c", "leave", show=False, priority=True),
    ]

    def __init__(self, question: str, text: str) -> None:
        super().__init__()
        self._question = question
        self._text = text
        self._seen: events.Key | None = None
        self._early: list[events.Key] | None = []

    def compose(self) -> ComposeResult:
        """The question, and what is typed."""
        yield Static(f" {safe(self._question, 400)} ", markup=False, id="question")
        yield Input(safe(self._text, 400), select_on_focus=False, id="answer")

    def on_mount(self) -> None:
        """Type at once."""
        self.query_one(Input).focus()
        early, self._early = self._early or [], None
        for event in early:
            self.typed_ahead(event)

    def on_key(self, event: events.Key) -> None:
        """Remember what came to us, to tell it from what was typed ahead."""
        self._seen = event

    def typed_ahead(self, event: events.Key) -> bool:
        """Take a key that was pressed before this line was there; whether it was one."""
        if event is self._seen:
            return False
        if self._early is not None:
            self._early.append(event)
            return True
        line = self.query_one(Input)
        if event.key in ("enter", "escape"):
            self.dismiss(line.value if event.key == "enter" else None)
        elif event.is_printable and event.character is not None:
            line.insert_text_at_cursor(event.character)
        return True

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the answer."""
        self.dismiss(event.value)

    def action_leave(self) -> None:
        """Take none."""
        self.dismiss(None)
