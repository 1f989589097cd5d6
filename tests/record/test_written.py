"""Where code is written, as its author calls the place."""

from __future__ import annotations

import sys
from types import SimpleNamespace

from kvtrace.record.written import file_of


def code_of(filename):
    return compile("x = 1", filename, "exec")


def test_code_of_a_file_goes_by_the_name_of_the_file():
    assert file_of(code_of("/somewhere/else/model.py")) == "model.py"


def test_code_of_a_notebook_goes_by_the_number_of_its_cell(monkeypatch):
    def format_code_name(name):
        return ("Cell", "In[3]") if name == "/tmp/ipykernel_7/26.py" else None

    shell = SimpleNamespace(compile=SimpleNamespace(format_code_name=format_code_name))
    module = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython.core.getipython", module)
    assert file_of(code_of("/tmp/ipykernel_7/26.py")) == "In[3]"
    assert file_of(code_of("/home/me/model.py")) == "model.py"


def test_ipython_that_is_loaded_but_does_not_run_the_program_changes_nothing(monkeypatch):
    module = SimpleNamespace(get_ipython=lambda: None)
    monkeypatch.setitem(sys.modules, "IPython.core.getipython", module)
    assert file_of(code_of("/home/me/model.py")) == "model.py"
