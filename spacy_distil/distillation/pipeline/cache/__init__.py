"""What a teacher makes of a corpus: computed once, read from memory-mapped shards.

A cache is a directory:

    cache.json                   of what teacher and documents it is, and what is recorded
    shard-00000.safetensors ...  of 50,000 tokens or 256 MB: for each field of each head the rows of
                                 all its documents behind one another, (rows, width)

A shard is written elsewhere and then renamed, so that those that are there are complete, and a run
that was interrupted goes on after them. Shards are mapped, not read: a batch costs the pages that
it lies on, whatever the size of the cache.

Read in this order: `layout` (what lies where), `store` (what is computed, used, refused or
replaced), `recording` (a teacher's arrays to a shard's), `shards` (their files), `reader`.
"""

from spacy_distil.distillation.pipeline.cache.reader import TeacherCache
from spacy_distil.distillation.pipeline.cache.store import open_cache

__all__ = ["TeacherCache", "open_cache"]
