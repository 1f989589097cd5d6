"""The table of sites a trace names: every place that attends, in the order they first did."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from msgspec.structs import replace

from kvtrace.record.cache.reads import Read
from kvtrace.record.cache.stores import common, dtype_name
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.trace import Site


@dataclass(slots=True)
class Sites:
    """Sites in the order they first attended."""

    sites: list[Site] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    _index: dict[tuple[object, ...], int] = field(default_factory=dict)

    def of(self, call: AttentionCall, read: Read, store: int, first: int | None) -> int:
        """The site of a call.

        Args:
            call: It.
            read: Where its rows came from.
            store: Cache layer they are in.
            first: Site that was given the same rows before it in this forward, if any.
        """
        shared = first is not None and read.source == "cache"
        key = (call.module, call.call, store, shared, call.queries.shape[1], call.keys.shape[1])
        found = self._index.get(key)
        if found is not None:
            self._say(found, read)
            return found
        index = self._index[key] = len(self.sites)
        sinks = () if call.sinks is None else tuple(float(x) for x in call.sinks.tolist())
        heads = call.queries.shape[1]
        dtype = common(call.queries, call.output)
        self.dtypes.append(dtype)
        self.sites.append(
            Site(
                index=index,
                module=call.module,
                call=call.call,
                layer=call.layer,
                kind=call.kind,
                num_heads=heads,
                num_kv_heads=call.keys.shape[1] // read.repeats,
                key_dim=call.keys.shape[3],
                value_dim=call.values.shape[3],
                scale=call.scale,
                reads=store,
                softcap=call.softcap,
                window=call.window,
                sinks=sinks if len(sinks) == heads else (),
                source="shared" if shared else read.source,
                shared_from=first if shared else None,
                level=call.level,
                dtype=dtype_name(dtype),
                code=call.code,
                scores_code=call.scores_code,
                rule=call.rule,
            )
        )
        return index

    def _say(self, index: int, read: Read) -> None:
        """Whether a model of one's own keeps rows is known when it first reads them."""
        site = self.sites[index]
        if site.source != read.source and {site.source, read.source} == {"cache", "uncached"}:
            self.sites[index] = replace(site, source=read.source)
