"""What to do when the code that a repository brings fails: whose fault it is, and the way round.

Such code lies beside the weights as it was when they were uploaded, often years ago. Knows the
exception, the configuration and the folder; runs nothing.
"""

from __future__ import annotations

from pathlib import Path

import transformers
from transformers import GenerationConfig, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kvtrace.errors import ModelError
from kvtrace.models.hub.config import CONFIG, Json, code_files
from kvtrace.models.scripts.outdated import outdated
from kvtrace.text import safe

_EAGER = "eager"
_ELSEWHERE = "--"


def runs_own_code(config: Json, trusted: bool) -> bool:
    """Whether it is the repository's code that builds the model.

    Args:
        config: The configuration, as parsed.
        trusted: Whether such code may run.
    """
    return trusted and bool(code_files(config))


def advised(error: ModelError, config: Json, folder: Path) -> ModelError:
    """The same refusal, with what can be done about it where that is known.

    Args:
        error: What the code raised is its cause.
        config: The configuration, as parsed.
        folder: Of the model.
    """
    cause = error.__cause__
    advice = _advice(cause, config, folder) if cause is not None else ""
    return ModelError(f"{error}; {advice}") if advice else error


def _advice(cause: BaseException, config: Json, folder: Path) -> str:
    if isinstance(cause, MemoryError) or "pip install" in str(cause):
        return ""
    kind = config.get("model_type")
    if lacking := _lacking_file(cause, config, folder):
        said = f"its code needs {lacking}, which is not here: take it from the repository too"
    elif isinstance(cause, OSError) and (elsewhere := _elsewhere(config)):
        said = f"its code lies in {elsewhere}, which could not be read: go online once to fetch it"
    elif kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        said = f"without --trust-remote-code, transformers' own {kind} is used"
    elif isinstance(cause, KeyError) and cause.args[0] in {_EAGER, *ALL_ATTENTION_FUNCTIONS}:
        said = f"its code has no {cause.args[0]} attention: name one that it has, as --attn eager"
    else:
        said = _for_another(config) or _of_config(cause) or outdated(cause)
    return said or (
        f"it is the repository's own code that fails with transformers {transformers.__version__}: "
        "look for a newer revision of it"
    )


def _of_config(cause: BaseException) -> str:
    """What to say of a field that the code asks its configuration for; or nothing.

    Until transformers 4 every configuration had the fields of a generation configuration.
    """
    asked = isinstance(cause, AttributeError) and isinstance(cause.obj, PreTrainedConfig)
    name = str(getattr(cause, "name", ""))
    if not asked or hasattr(GenerationConfig(), name):
        return ""
    return f"{CONFIG} does not say {safe(name, 60)}: is it of the same revision?"


def _for_another(config: Json) -> str:
    """What to say where the code is of another age than the transformers that is here."""
    made, here = config.get("transformers_version"), transformers.__version__
    if not isinstance(made, str) or made.partition(".")[0] == here.partition(".")[0]:
        return ""
    return (
        f"the repository's code was written for transformers {safe(made, 20)} ({CONFIG}) and "
        f"here is {here}: look for a newer revision of it"
    )


def _lacking_file(cause: BaseException, config: Json, folder: Path) -> str:
    """A Python file of the repository that is not in its directory; or empty."""
    named = [name for name in code_files(config) if _ELSEWHERE not in name]
    lacking = [name for name in named if not (folder / name).is_file()]
    if lacking and isinstance(cause, OSError):
        return safe(lacking[0], 80)
    if not isinstance(cause, FileNotFoundError) or not isinstance(cause.filename, str):
        return ""
    path = Path(cause.filename)
    beside = path.suffix == ".py" and path.parent.resolve() == folder.resolve()
    return safe(path.name, 80) if beside else ""


def _elsewhere(config: Json) -> str:
    """Another repository that the configuration takes its code from; or empty."""
    parts = (name.partition(_ELSEWHERE) for name in code_files(config))
    return next((safe(owner, 100) for owner, mark, _ in parts if mark), "")
