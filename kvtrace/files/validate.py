"""What must hold of values from a file before anybody may trust them.

Types are checked by `codec`; here numbers are held against each other and against the file's
size, so that nothing later allocates or indexes by a number that was made up.
"""

from __future__ import annotations

from kvtrace.errors import TraceError
from kvtrace.trace import Meta, Step, dtypes
from kvtrace.trace.meta import FORMAT_VERSION, CacheLayer, Site

MAX_HEADS = 1 << 20
MAX_DIM = 1 << 24


def check_meta(meta: Meta, where: str) -> None:
    """Indices count from 0, every size is positive, every reference exists.

    Raises:
        TraceError: Something does not hold.
    """
    if not 0 < meta.version <= FORMAT_VERSION:
        raise TraceError(
            f"{where}: META is of format {meta.version}, up to {FORMAT_VERSION} known."
        )
    for index, layer in enumerate(meta.cache_layers):
        if layer.index != index or not _sound_layer(layer):
            raise TraceError(f"{where}: cache layer {index} of META has sizes that can't be.")
    for index, site in enumerate(meta.sites):
        if site.index != index or not _sound_site(site, len(meta.cache_layers)):
            raise TraceError(f"{where}: site {index} of META has sizes that can't be.")
        read = meta.cache_layers[site.reads]
        if (read.num_kv_heads, read.key_dim) != (site.num_kv_heads, site.key_dim):
            raise TraceError(f"{where}: site {index} of META does not fit the rows it reads.")
        if read.value_dim != site.value_dim:
            raise TraceError(f"{where}: site {index} of META does not fit the rows it reads.")
    for lane in meta.lanes:
        if not dtypes.is_float(lane.dtype):
            raise TraceError(f"{where}: lane of META has the unknown dtype {lane.dtype[:20]!r}.")


def _sound_layer(layer: CacheLayer) -> bool:
    dims = 0 < layer.key_dim <= MAX_DIM and 0 < layer.value_dim <= MAX_DIM
    return dims and 0 < layer.num_kv_heads <= MAX_HEADS and dtypes.known(layer.dtype)


def _sound_site(site: Site, layers: int) -> bool:
    heads = 0 < site.num_kv_heads <= site.num_heads <= MAX_HEADS
    dims = 0 < site.key_dim <= MAX_DIM and 0 < site.value_dim <= MAX_DIM
    whole = heads and site.num_heads % site.num_kv_heads == 0
    sinks = len(site.sinks) in (0, site.num_heads)
    return whole and dims and sinks and 0 <= site.reads < layers and dtypes.known(site.dtype)


def check_step(step: Step, meta: Meta, file_bytes: int, where: str) -> None:
    """Rectangular tokens, runs inside the file's size, groups that META knows.

    Raises:
        TraceError: Something does not hold.
    """
    if step.number < 0 or not step.tokens:
        raise TraceError(f"{where}: a step without number or tokens.")
    rows = [*step.tokens, *step.positions]
    if len(step.positions) != len(step.tokens) or any(len(row) != step.new for row in rows):
        raise TraceError(
            f"{where}: tokens and positions of step {step.number} are not rectangular."
        )
    for group in step.caches:
        known = all(0 <= layer < len(meta.cache_layers) for layer in group.layers)
        counts = [run.count for runs in (*group.attended, *group.kept) for run in runs]
        cells = [run.cell for runs in (*group.attended, *group.kept) for run in runs]
        bounded = (
            sum(counts) <= file_bytes * max(1, len(group.attended)) and min(counts, default=0) >= 0
        )
        written = 0 <= group.rows <= file_bytes and 0 <= group.first_cell < 1 << 48
        sane = min(cells, default=0) >= 0 and max(cells, default=0) < 1 << 48
        if not (known and bounded and written and sane and group.attended):
            raise TraceError(f"{where}: step {step.number} has cache rows that can't be.")
        if len(group.kept) != len(group.attended) or len(set(group.layers)) != len(group.layers):
            raise TraceError(f"{where}: step {step.number} has cache rows that can't be.")
    for sites in step.sites:
        known = all(0 <= site < len(meta.sites) for site in sites.sites)
        lengths = {len(sites.check_error), len(sites.check_scale), len(sites.nonfinite)}
        padding = len(sites.mask.padding) in (0, step.num_sequences)
        chunk = sites.mask.chunk is None or sites.mask.chunk > 0
        new = sites.new is None or 0 <= sites.new <= file_bytes
        if not new or not known or lengths != {len(sites.sites)} or not padding or not chunk:
            raise TraceError(f"{where}: step {step.number} has attention that can't be.")
