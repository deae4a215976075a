"""The teacher's records of a corpus: computed once, read from memory-mapped shards.

A cache is a directory:

    cache.json                   its teacher, its documents and its fields
    shard-00000.safetensors ...  up to 50,000 tokens or 256 MB each: for each field of each head one
                                 array with the rows of all documents in the shard, (rows, width)
    decisions/, development/     caches of whole docs, see `decisions.py`

A shard is either complete or absent, so an interrupted run goes on after the shards that it has
written. Shards are mapped: a batch reads the pages that it lies on, whatever the size of the cache.
A shard is read whole once, before its first batch, to compare its digest.

Read in this order: `layout` (the places of all documents), `store` (using, filling, refusing and
replacing a cache), `recording` (from arrays per document to a shard), `shards` (their files),
`reader`.
"""

from spacy_distil.distillation.pipeline.cache.reader import TeacherCache
from spacy_distil.distillation.pipeline.cache.state import DECISIONS, DEVELOPMENT
from spacy_distil.distillation.pipeline.cache.store import open_cache

__all__ = ["DECISIONS", "DEVELOPMENT", "TeacherCache", "open_cache"]
