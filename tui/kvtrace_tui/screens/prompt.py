"""One line of input at the foot of the screen."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from kvtrace.text import safe


class PromptScreen(ModalScreen[str | None]):
    """A question and a line for the answer; None when the user goes back."""

    BINDINGS = [  # noqa: RUF012 - Textual's own form
        Binding("escape", "leave", show=False),
        Binding("ctrl+c", "leave", show=False, priority=True),
    ]

    def __init__(self, question: str, text: str) -> None:
        super().__init__()
        self._question = question
        self._text = text

    def compose(self) -> ComposeResult:
        """The question, and what is typed."""
        yield Static(f" {safe(self._question, 400)} ", markup=False, id="question")
        yield Input(safe(self._text, 400), select_on_focus=False, id="answer")

    def on_mount(self) -> None:
        """Type at once."""
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the answer."""
        self.dismiss(event.value)

    def action_leave(self) -> None:
        """Take none."""
        self.dismiss(None)
