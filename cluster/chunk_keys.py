"""Every Redis key of embedded buckets, and the scripts that change several of them at once.

`T/B` is tenant and bucket; the braces put all keys of a bucket into one slot of a cluster. All
begin with `<key_prefix>:1:`. Times to live are only set where one is written here.

| key | type | holds |
|---|---|---|
| `{T/B}:head` | HASH | `version`: of the last commit, also of a deletion; `commit`: its digest |
| `{T/B}:meta` | STRING | `BucketMeta` without its version; there while the bucket is embedded |
| `{T/B}:files` | HASH | filename -> `FileRecord` without what is searchable |
| `{T/B}:manifest` | HASH | filename -> `EmbeddedFile`: which segments are searchable |
| `{T/B}:vectors:S` | STRING | segment S: float16, little-endian, row after row |
| `{T/B}:texts:S` | HASH | segment S: row -> `Chunk` |
| `{T/B}:staged:H` | STRING | what is written of a version of a file, H its digest; lives 24 h |
| `{T/B}:log` | STREAM | id `version-0` -> `previous` version, `change`; about the last 1,000 |
| `{T/B}:trash:X` | HASH | the manifest of a deleted bucket, until its segments have an end |
| `{T/B}:trash` | SET | which of these there are |
| `buckets:T` | SET | names of the tenant's embedded buckets (some may be gone) |
| `changes` | STREAM | tenant, bucket, version of each commit in any bucket; about the last 10,000 |

A version is the time of its commit in milliseconds, or one more than the previous one if that is
larger. So two commits never share one, even if the server has lost the later of them in a crash.

A segment is written before it is visible, with 24 h to live. The commit that makes it searchable
takes that limit off, and the one that replaces it gives it 5 minutes, for readers that are still
at the older version. So what a crash leaves is collected by Redis itself.

Of a deleted bucket stay `head` and a `log` of its deletion alone, for a week: readers that were cut
off meanwhile learn of it. A later commit needs neither, because its version is later anyway.
"""

import hashlib

from cluster.redis_client import RedisClient, Script
from cluster.types import BucketRef

STAGED_TTL_S = 24 * 3600
REPLACED_TTL_S = 300
DELETED_TTL_S = 7 * 24 * 3600
MAX_LOG_ENTRIES = 1_000
MAX_ANNOUNCEMENTS = 10_000


class ChunkKeys:
    """The keys of one bucket."""

    def __init__(self, redis: RedisClient, bucket: BucketRef) -> None:
        # A brace in the name would move the slot.
        name = bucket.name.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
        self._stem = redis.key(f"{{{bucket.tenant}/{name}}}")
        self.head = f"{self._stem}:head"
        self.meta = f"{self._stem}:meta"
        self.files = f"{self._stem}:files"
        self.manifest = f"{self._stem}:manifest"
        self.log = f"{self._stem}:log"
        self.trash = f"{self._stem}:trash"

    def vectors(self, segment_id: str) -> str:
        return f"{self._stem}:vectors:{segment_id}"

    def texts(self, segment_id: str) -> str:
        return f"{self._stem}:texts:{segment_id}"

    def segment(self, segment_id: str) -> tuple[str, str]:
        return self.vectors(segment_id), self.texts(segment_id)

    def staged(self, *identity: str) -> str:
        digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
        return f"{self._stem}:staged:{digest}"

    def trashed(self, name: str) -> str:
        return f"{self._stem}:trash:{name}"


def buckets_key(redis: RedisClient, tenant: str) -> str:
    return redis.key("buckets", tenant)


def changes_key(redis: RedisClient) -> str:
    return redis.key("changes")


_NEXT_VERSION = """
local function next_version(version)
  local now = redis.call('TIME')
  return math.max(version + 1, now[1] * 1000 + math.floor(now[2] / 1000))
end
local function log_change(log, longest, version, previous, change)
  local id = string.format('%.0f-0', version)
  redis.call('XADD', log, 'MAXLEN', '~', longest, id, 'previous', previous, 'change', change)
end
"""

# KEYS: head, meta, manifest, files, log; then the added segments' and the removed segments' keys.
# ARGV: version that was read, digest of the commit, meta, change, number of added keys, TTL of
#   removed keys, longest log, number of files put; then filename and manifest entry of each of
#   them, filename and file record of each of them, and the dropped filenames.
# Returns the new version, -1 when another commit came between, -2 when an added segment is gone.
COMMIT = Script(
    _NEXT_VERSION
    + """
local head, meta, manifest, files, log = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local version = tonumber(redis.call('HGET', head, 'version') or '0')
if redis.call('HGET', head, 'commit') == ARGV[2] then return version end
if version ~= tonumber(ARGV[1]) then return -1 end

-- Many fields or keys at a time, but not more than Lua's stack holds.
local function by_thousands(first, last, what)
  for i = first, last, 1000 do what(i, math.min(i + 999, last)) end
end

local last_added, num_found = 5 + tonumber(ARGV[5]), 0
by_thousands(6, last_added, function(i, j)
  num_found = num_found + redis.call('EXISTS', unpack(KEYS, i, j))
end)
if num_found < last_added - 5 then return -2 end
for i = 6, last_added do redis.call('PERSIST', KEYS[i]) end
for i = last_added + 1, #KEYS do redis.call('EXPIRE', KEYS[i], ARGV[6]) end

local num_fields = 2 * tonumber(ARGV[8])
by_thousands(9, 8 + num_fields, function(i, j)
  redis.call('HSET', manifest, unpack(ARGV, i, j))
end)
by_thousands(9 + num_fields, 8 + 2 * num_fields, function(i, j)
  redis.call('HSET', files, unpack(ARGV, i, j))
end)
by_thousands(9 + 2 * num_fields, #ARGV, function(i, j)
  redis.call('HDEL', manifest, unpack(ARGV, i, j))
  redis.call('HDEL', files, unpack(ARGV, i, j))
end)

version = next_version(version)
redis.call('SET', meta, ARGV[3])
redis.call('HSET', head, 'version', string.format('%.0f', version), 'commit', ARGV[2])
log_change(log, ARGV[7], version, ARGV[1], ARGV[4])
redis.call('PERSIST', head)
redis.call('PERSIST', log)
return version
"""
)

# KEYS: head, meta, manifest, files, log, trash, the trashed manifest.
# ARGV: version that was read, change, longest log, TTL of what stays.
# Returns the new version, -1 when another commit came between, 0 when there is nothing to delete.
DELETE = Script(
    _NEXT_VERSION
    + """
local version = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
if redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4]) == 0 then return 0 end
if version ~= tonumber(ARGV[1]) then return -1 end
version = next_version(version)
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('RENAME', KEYS[3], KEYS[7])
  redis.call('SADD', KEYS[6], KEYS[7])
end
redis.call('UNLINK', KEYS[2], KEYS[4])
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', version))
redis.call('HDEL', KEYS[1], 'commit')
log_change(KEYS[5], ARGV[3], version, ARGV[1], ARGV[2])
redis.call('XTRIM', KEYS[5], 'MAXLEN', 1)
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[5], ARGV[4])
return version
"""
)

# KEYS: head; then keys of segments. ARGV: version that was read, TTL.
# Returns 0 when another commit came between.
END_SEGMENTS = Script(
    """
if tonumber(redis.call('HGET', KEYS[1], 'version') or '0') ~= tonumber(ARGV[1]) then return 0 end
for i = 2, #KEYS do redis.call('EXPIRE', KEYS[i], ARGV[2]) end
return 1
"""
)

# KEYS: head, manifest, files. ARGV: 1 to have the file records too.
READ = Script(
    """
local version = redis.call('HGET', KEYS[1], 'version') or '0'
local manifest = redis.call('HGETALL', KEYS[2])
if ARGV[1] ~= '1' then return {version, manifest} end
return {version, manifest, redis.call('HGETALL', KEYS[3])}
"""
)

# KEYS: head, files. ARGV: version that is expected or -1, then filename and record of each file.
# Returns 0 when another commit came between.
NOTE_FILES = Script(
    """
local version = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
local expected = tonumber(ARGV[1])
if expected >= 0 and version ~= expected then return 0 end
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
return 1
"""
)
