"""What must hold of values from a file before anybody may trust them.

Types are checked by `codec`; here numbers are held against each other and against the file's
size, so that nothing later allocates or indexes by a number that was made up.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from kvtrace.errors import TraceError
from kvtrace.text import safe
from kvtrace.trace import CACHED, CacheStep, Lane, Meta, SiteStep, Step, dtypes
from kvtrace.trace.meta import FORMAT_VERSION, CacheLayer, Site
from kvtrace.trace.step import PoolRun, Runs

MAX_HEADS = 1 << 20
MAX_DIM = 1 << 24
MAX_CELL = 1 << 48
PHASES = ("prefill", "decode")
_LONGEST_NAME = 40
SPARE_ROWS = 1 << 18
"""A recovered trace may lack rows that its steps attended to: more rows than bytes."""


def check_meta(meta: Meta, before: Meta | None, where: str) -> None:
    """Indices count from 0, every size is positive, every reference exists, nothing changed.

    Args:
        meta: To be checked.
        before: The META it extends, if there is one.
        where: To begin the message with.

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
        if site.index != index or not _sound_site(site, meta.cache_layers):
            raise TraceError(f"{where}: site {index} of META does not fit the rows it reads.")
    if before is not None and not _extends(meta, before):
        raise TraceError(f"{where}: a later META changes an earlier one instead of extending it.")
    if meta.rank is not None and not 0 <= meta.rank.number < meta.rank.size <= MAX_HEADS:
        raise TraceError(f"{where}: META says that it is a rank that can't be.")
    for lane in meta.lanes:
        _check_lane(lane, where)


def _check_lane(lane: Lane, where: str) -> None:
    if lane.name in ("", CACHED) or safe(lane.name, _LONGEST_NAME) != lane.name:
        raise TraceError(f"{where}: no lane can be called {lane.name[:20]!r}, as META says.")
    if not dtypes.is_float(lane.dtype):
        raise TraceError(f"{where}: lane of META has the unknown dtype {lane.dtype[:20]!r}.")


def _extends(meta: Meta, before: Meta) -> bool:
    sites = [_fixed_site(site) for site in meta.sites[: len(before.sites)]]
    layers = [_fixed_layer(layer) for layer in meta.cache_layers[: len(before.cache_layers)]]
    return (
        sites == [_fixed_site(site) for site in before.sites]
        and layers == [_fixed_layer(layer) for layer in before.cache_layers]
        and meta.lanes[: len(before.lanes)] == before.lanes
    )


def _fixed_site(site: Site) -> Site:
    """What no later META may say otherwise."""
    return replace(site, source="", window=None)


def _fixed_layer(layer: CacheLayer) -> CacheLayer:
    """What no later META may say otherwise: a layer that grows may turn out to be a buffer."""
    return replace(
        layer,
        kind="",
        window=None,
        capacity=None,
        where="",
        remark="",
        shared_dim=0,
        block_slots=0,
        latent_bytes=0,
    )


def _sound_layer(layer: CacheLayer) -> bool:
    # latents of attention without positions have no rotary key beside them
    least = 0 if layer.kind == "latent" else 1
    dims = 0 < layer.key_dim <= MAX_DIM and least <= layer.value_dim <= MAX_DIM
    dims = dims and 0 <= layer.shared_dim <= min(layer.key_dim, layer.value_dim)
    dims = dims and 0 <= layer.latent_bytes <= MAX_DIM * MAX_HEADS
    heads = 0 < layer.num_kv_heads <= MAX_HEADS and dtypes.known(layer.dtype)
    return dims and heads and _part(layer.num_kv_heads, layer.first_kv_head, layer.all_kv_heads)


def _part(heads: int, first: int, every: int) -> bool:
    """Whether heads that begin at `first` are among `every`; 0, 0: nothing is said."""
    return (first, every) == (0, 0) or 0 <= first <= first + heads <= every <= MAX_HEADS


def _sound_site(site: Site, layers: Sequence[CacheLayer]) -> bool:
    heads = 0 < site.num_kv_heads <= site.num_heads <= MAX_HEADS
    whole = heads and site.num_heads % site.num_kv_heads == 0
    whole = whole and _part(site.num_heads, site.first_head, site.all_heads)
    if not (whole and dtypes.known(site.dtype) and 0 <= site.reads < len(layers)):
        return False
    read = layers[site.reads]
    rows = (read.num_kv_heads, read.key_dim, read.value_dim)
    fits = rows == (site.num_kv_heads, site.key_dim, site.value_dim)
    return fits and len(site.sinks) in (0, site.num_heads)


def check_step(step: Step, meta: Meta, file_bytes: int, where: str) -> None:
    """Rectangular tokens, runs inside the file's size, groups that META knows.

    Raises:
        TraceError: Something does not hold.
    """
    where = f"{where}: step {step.number}"
    _check_place(step, where)
    each = (*step.tokens, *step.positions, *step.likeliest)
    told = len(step.positions), len(step.likeliest) or len(step.tokens)
    if told != (len(step.tokens),) * 2 or any(len(row) != step.new for row in each):
        raise TraceError(f"{where}: tokens and positions are not rectangular.")
    for group in step.caches:
        if not _sound_caches(group, len(meta.cache_layers), file_bytes):
            raise TraceError(f"{where} has cache rows that can't be.")
    for sites in step.sites:
        if not _sound_sites(sites, len(meta.sites), step.num_sequences, file_bytes):
            raise TraceError(f"{where} has attention that can't be.")
    packed = step.packed
    if packed is not None and not (0 <= packed.place < packed.of and packed.forward >= 0):
        raise TraceError(f"{where} is a part of a forward that can't be.")
    if any(not one.fits(step.new * step.num_sequences) for one in step.picks):
        raise TraceError(f"{where} has choices of another number of tokens.")
    for top in step.top:
        if len(top.ids) != len(top.logits):
            raise TraceError(f"{where} has {len(top.ids)} top ids and {len(top.logits)} logits.")


def _check_place(step: Step, where: str) -> None:
    """That it stands somewhere in the run: numbers ascend from a step to those that follow it."""
    if step.number < 0 or not step.tokens or step.phase not in PHASES:
        what = f"no number, no tokens or the unknown phase {step.phase[:20]!a}"
        raise TraceError(f"{where} has {what}.")
    if step.parent is not None and not 0 <= step.parent < step.number:
        raise TraceError(f"{where} goes on with step {step.parent}, which is not before it.")


def _sound_caches(group: CacheStep, layers: int, file_bytes: int) -> bool:
    if not group.attended or len(group.kept) != len(group.attended) or not group.layers:
        return False
    if min(group.layers) < 0 or max(group.layers) >= layers:
        return False
    if len(set(group.layers)) != len(group.layers):
        return False
    if len(group.pool) not in (0, len(group.attended)):
        return False
    if any(not _lies(pool, runs) for pool, runs in zip(group.pool, group.attended, strict=False)):
        return False
    written = 0 <= group.rows <= file_bytes and 0 <= group.first_cell < MAX_CELL
    longest = file_bytes + SPARE_ROWS
    return written and all(
        _sound_runs(runs, longest) for runs in (*group.attended, *group.kept) if runs
    )


def _lies(pool: Sequence[PoolRun], runs: Runs) -> bool:
    """Whether every row is said to lie in a slot, or in none."""
    bounded = all(one.count >= 0 and -1 <= one.slot < MAX_CELL for one in pool)
    return bounded and sum(one.count for one in pool) == sum(run.count for run in runs)


def _sound_runs(runs: Runs, longest: int) -> bool:
    total = 0
    for run in runs:
        if run.count < 0 or not 0 <= run.cell < MAX_CELL or abs(run.position) >= MAX_CELL:
            return False
        if abs(run.slot) >= MAX_CELL:
            return False
        total += run.count
    return total <= longest


def _sound_sites(group: SiteStep, sites: int, sequences: int, file_bytes: int) -> bool:
    known = not group.sites or (min(group.sites) >= 0 and max(group.sites) < sites)
    lengths = {len(group.check_error), len(group.check_scale), len(group.nonfinite)}
    mask = group.mask
    padding = len(mask.padding) in (0, sequences)
    bounded = all(abs(number) < MAX_CELL for number in (mask.offset or 0, mask.origin))
    ruled = mask.offset is not None or (mask.window is None and mask.chunk is None)
    chunk = mask.chunk is None or 0 < mask.chunk < MAX_CELL
    window = mask.window is None or 0 <= mask.window < MAX_CELL
    new = group.new is None or 0 <= group.new <= file_bytes
    fits = known and lengths == {len(group.sites)} and new
    return fits and padding and bounded and ruled and chunk and window
