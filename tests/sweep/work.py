"""A worker of the sweep: types on standard input, a row each on standard output, as JSON."""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path


def main():
    import torch
    import transformers

    from sweep.examine import examine

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):
            row = examine(line.strip(), Path(sys.argv[1]))
        answers.write(json.dumps(asdict(row)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
