"""What to do when the code that a repository brings fails: whose fault it is, and the way round.

Such code lies beside the weights as it was when they were uploaded, often years ago. Knows the
exception, the configuration and the folder; runs nothing.
"""

from __future__ import annotations

from pathlib import Path

import transformers
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kvtrace.errors import ModelError
from kvtrace.models.hub.config import CONFIG, Json, code_files
from kvtrace.models.scripts.outdated import outdated
from kvtrace.text import safe

_EAGER = "eager"


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
    if lacking := _lacking_file(cause, folder):
        said = f"its code needs {lacking}, which is not here: take it from the repository too"
    elif isinstance(cause, AttributeError) and isinstance(cause.obj, PreTrainedConfig):
        said = f"{CONFIG} does not say {safe(str(cause.name), 60)}: is it of the same revision?"
    elif kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        said = f"without --trust-remote-code, transformers' own {kind} is used"
    elif isinstance(cause, KeyError) and cause.args[0] in {_EAGER, *ALL_ATTENTION_FUNCTIONS}:
        said = f"its code has no {cause.args[0]} attention: name one that it has, as --attn eager"
    else:
        said = _for_another(config) or outdated(cause)
    return said


def _for_another(config: Json) -> str:
    """What to say where the code is of another age than the transformers that is here."""
    made, here = config.get("transformers_version"), transformers.__version__
    if not isinstance(made, str) or made.partition(".")[0] == here.partition(".")[0]:
        return ""
    return (
        f"the repository's code was written for transformers {safe(made, 20)} ({CONFIG}) and "
        f"here is {here}: look for a newer revision of it"
    )


def _lacking_file(cause: BaseException, folder: Path) -> str:
    """The Python file that another one imports and that is not in the directory; or empty."""
    if not isinstance(cause, FileNotFoundError) or not isinstance(cause.filename, str):
        return ""
    path = Path(cause.filename)
    beside = path.suffix == ".py" and path.parent.resolve() == folder.resolve()
    return safe(path.name, 80) if beside else ""
