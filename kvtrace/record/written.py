"""Where code is written, as its author calls the place."""

from __future__ import annotations

import sys
from pathlib import PurePath
from types import CodeType


def file_of(code: CodeType) -> str:
    """Name of the file: "model.py"; of a notebook's cell, which has none to speak of: "In[3]"."""
    notebook = sys.modules.get("IPython.core.getipython")
    shell = notebook.get_ipython() if notebook is not None else None
    name_of = getattr(getattr(shell, "compile", None), "format_code_name", None)
    cell = name_of(code.co_filename) if callable(name_of) else None
    return str(cell[1]) if cell else PurePath(code.co_filename).name
