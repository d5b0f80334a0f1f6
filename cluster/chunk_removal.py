"""The deletion of a bucket's embedding: at once from sight, in small steps from memory."""

import secrets

import msgspec

from cluster import chunk_keys
from cluster.chunk_keys import ChunkKeys
from cluster.chunk_records import Change, EmbeddedFile
from cluster.redis_client import RedisClient

_BATCH = 200  # files in one step
_ENCODER = msgspec.msgpack.Encoder()
_EMBEDDED_FILE = msgspec.msgpack.Decoder(EmbeddedFile)


async def remove_from_sight(redis: RedisClient, keys: ChunkKeys) -> int:
    """The version that the deletion makes; 0: there was nothing to delete. The manifest becomes
    trash.
    """
    while True:
        seen = int(await redis.execute("HGET", keys.head, "version") or 0)
        version = int(
            await redis.run(
                chunk_keys.DELETE,
                keys=[
                    *(keys.head, keys.meta, keys.manifest, keys.files, keys.log, keys.trash),
                    keys.trashed(secrets.token_hex(8)),
                ],
                args=[
                    *(seen, _ENCODER.encode(Change(clears=True)), chunk_keys.MAX_LOG_ENTRIES),
                    chunk_keys.DELETED_TTL_S,
                ],
            )
        )
        if version >= 0:
            return version


async def empty_trash(redis: RedisClient, keys: ChunkKeys) -> None:
    """Give an end to the segments of deleted manifests. It may be interrupted and begun again."""
    for trashed in await redis.execute("SMEMBERS", keys.trash):
        cursor = b"0"
        while True:
            cursor, raw = await redis.execute("HSCAN", trashed, cursor, "COUNT", _BATCH)
            files = {name: _EMBEDDED_FILE.decode(value) for name, value in raw.items()}
            await _end_segments(redis, keys, files)
            if int(cursor) == 0:
                break
        await redis.execute("UNLINK", trashed)
        await redis.execute("SREM", keys.trash, trashed)


async def _end_segments(
    redis: RedisClient, keys: ChunkKeys, files: dict[bytes, EmbeddedFile]
) -> None:
    """But not those that a commit after the deletion has made searchable again."""
    is_done = not files
    while not is_done:
        # The version is read first: who commits in between makes it too old, and is noticed.
        version, *entries = await redis.execute_many(
            [("HGET", keys.head, "version"), *(("HGET", keys.manifest, name) for name in files)]
        )
        live = {
            segment.segment_id
            for raw in entries
            if raw is not None
            for segment in _EMBEDDED_FILE.decode(raw).segments
        }
        doomed = [
            key
            for file in files.values()
            for segment in file.segments
            if segment.segment_id not in live
            for key in keys.segment(segment.segment_id)
        ]
        is_done = bool(
            await redis.run(
                chunk_keys.END_SEGMENTS,
                keys=[keys.head, *doomed],
                args=[int(version or 0), chunk_keys.REPLACED_TTL_S],
            )
        )
