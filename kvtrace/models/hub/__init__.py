"""From a repository of the hub, or a directory like one, to a model: data first, then weights."""
