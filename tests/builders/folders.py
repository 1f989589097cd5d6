"""Changes to the files of a model's directory."""

from __future__ import annotations

import json


def edit(folder, name="config.json", **values):
    """Set values in a JSON file of a model's directory."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
