"""Pages of a sorted set, one after the other: what OpenAI's lists are cut into.

A page begins behind a member, not at a number: what is added or removed meanwhile neither repeats
nor hides anything.
"""

from cluster.errors import BadRequestError
from cluster.redis_client import RedisClient, Script

# KEYS: the set. ARGV: the member before ("" for none), how many, 1 for the last ones first
# -> members, or false: there is no such member before
_PAGE = Script(
    """
local start = 0
if ARGV[1] ~= '' then
  local rank = redis.call(ARGV[3] == '1' and 'ZREVRANK' or 'ZRANK', KEYS[1], ARGV[1])
  if not rank then return false end
  start = rank + 1
end
local command = ARGV[3] == '1' and 'ZREVRANGE' or 'ZRANGE'
return redis.call(command, KEYS[1], start, start + ARGV[2] - 1)
"""
)


async def read_page(
    redis: RedisClient, key: str, *, after: str, limit: int, is_descending: bool
) -> tuple[list[str], bool]:
    """Members behind `after`, and whether there are more.

    Raises:
        BadRequestError: `after` is no member (any more).
        ServiceUnavailableError: Redis does not answer.
    """
    found = await redis.run(_PAGE, keys=[key], args=(after, limit + 1, int(is_descending)))
    if found is None:
        raise BadRequestError(
            f"after: there is no {after[:100]!r} in this list (any more)", param="after"
        )
    ids = [member.decode() for member in found]
    return ids[:limit], len(ids) > limit
