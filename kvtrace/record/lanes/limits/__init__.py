"""Where a pass is no reference: models that look ahead, draw, round coarsely, or drop rows."""
