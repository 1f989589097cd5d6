"""What a model name means."""

import pytest

from kvtrace.errors import UsageError
from kvtrace.models import LoadRequest
from kvtrace.models.spec import parse_spec


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_built_in_names_come_first():
    assert parse_spec("demo").kind == "built-in"
    assert parse_spec("demo-gqa").kind == "built-in"


def test_a_directory_called_like_a_built_in_is_mentioned(here):
    (here / "demo").mkdir()
    assert parse_spec("demo").note == "built-in demo; ./demo is the directory"
    assert parse_spec("./demo").kind == "directory"


@pytest.mark.parametrize("spec", ["gpt2", "owner/name-1.5", "hf:gpt2"])
def test_names_that_are_nothing_here_are_hub_ids(spec):
    source = parse_spec(spec)
    assert (source.kind, source.place) == ("hub", spec.removeprefix("hf:"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("weights.pt", "weights alone are no model: name the function that builds it"),
        ("m.gguf", "packed for llama.cpp"),
        ("a.kvt", "`kvtrace open` reads traces"),
    ],
)
def test_a_file_that_is_no_model_is_told_what_to_name_instead(here, name, told):
    (here / name).write_bytes(b"")
    with pytest.raises(UsageError, match=told):
        parse_spec(name)


def test_the_address_of_a_hubs_page_means_its_model():
    assert parse_spec("https://huggingface.co/openai-community/gpt2").place == (
        "openai-community/gpt2"
    )


def test_a_directory_called_like_a_hub_id_wins_and_says_so(here):
    (here / "gpt2").mkdir()
    source = parse_spec("gpt2")
    assert source.kind == "directory"
    assert source.note == "the directory ./gpt2 was used; hf:gpt2 is the hub's"
    assert parse_spec("./gpt2").note == ""
    assert parse_spec("hf:gpt2").kind == "hub"


def test_the_name_of_a_directory_tells_nothing_of_where_it_is(here):
    (here / "alice" / "secret" / "model").mkdir(parents=True)
    assert parse_spec(str(here / "alice" / "secret" / "model")).name == "./model"
    assert parse_spec("alice/secret/model").name == "./model"


def test_a_factory_in_a_file_and_in_a_module(here):
    (here / "mine.py").write_text("")
    source = parse_spec("mine.py:make")
    assert (source.kind, source.factory, source.name) == ("file", "make", "mine.py:make")
    source = parse_spec("package.module:make")
    assert (source.kind, source.place) == ("module", "package.module")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("./gpt2", "no such directory; hf:NAME"),
        ("~nobody-of-that-name/gpt2", "no such directory; hf:NAME"),
        ("gone.py:make", "no such file"),
        ("gone.py", "gone.py: no such file"),
        ("absent.py:", "absent.py: no such file"),
        ("lesson.ipynb", "a notebook; make a script of it with `jupyter nbconvert"),
        ("lesson.ipynb:model", "a notebook; make a script of it with `jupyter nbconvert"),
        ("a b c", "neither a directory here nor a hub id"),
        ("hf:a/b/c", "neither a directory here nor a hub id"),
        ("a-b:make", "expected path/to/file.py:factory"),
        ("", "no model was named"),
        ("a\0b", "no model was named"),
    ],
)
def test_a_name_that_means_nothing_says_what_is_possible(spec, told):
    with pytest.raises(UsageError, match=r".") as caught:
        parse_spec(LoadRequest(spec).spec)
    assert told in str(caught.value)


def test_a_file_is_not_a_directory(here):
    (here / "weights.safetensors").write_bytes(b"")
    (here / "config.json").write_text("{}")
    (here / "a.kvt").write_bytes(b"")
    with pytest.raises(UsageError, match="name its directory"):
        parse_spec("weights.safetensors")
    with pytest.raises(UsageError, match="kvtrace open"):
        parse_spec("./a.kvt")


def test_a_negative_number_of_tokens_is_refused():
    with pytest.raises(UsageError, match="-n is -1"):
        LoadRequest("demo", new_tokens=-1)
