"""The durable queue's keys, and the scripts that change them: each happens whole or not at all.

Every key begins with the queue's root, `<prefix>:1:{<queue>}`. The braces are a hash tag: on a
Redis Cluster all keys of a queue are on one node, so that a script may touch several. A script's
only declared key is the root; it makes the others' names from it.

    :task:<id>                      HASH    the task; its fields are below
    :items:<id>                     HASH    item id -> its result, written once (`save_items`)
    :ready:<priority>               STREAM  the next task of each tenant that has any, and the ones
                                            that are being worked on: those are pending in the group
                                            `workers`, idle since the last heart-beat
    :turns:<priority>               SET     tenants with an entry in `ready` that nobody has claimed
    :backlog:<priority>:<tenant>    LIST    the tenant's other tasks, the oldest first
    :running:<tenant>               SET     the tenant's tasks that are being worked on
    :capped:<tenant>                SET     priorities at which the tenant's backlog waits for one
                                            of those to end: they were as many as it may have
    :delayed                        ZSET    tasks for later, by when they are due
    :wake                           STREAM  the last one that was put there: who waits looks again
    :lanes                          HASH    lane -> the task that has it
    :lane:<lane>                    LIST    tasks that wait for the lane
    :index:<tenant>:<type>:<status> ZSET    all tasks, by when they were created
    :dead                           ZSET    dead letters, by when they died
    :expiry                         ZSET    finished tasks, by when they are forgotten
    :once:<tenant>:<digest>         HASH    an idempotency key: the task's `id`, its body's `digest`
    :waiting:<digest>               STRING  a coalesce key -> the task that has not started yet
    :finished                       STREAM  the latest ends: id and status; about 1,000 are kept
    :counts                         HASH    status -> how many tasks have it
    :fence                          STRING  the last fencing token
    :period:<name>                  STRING  exists while the period's work is done or not due

Fields of a task: id, type, body, tenant, priority, lane, coalesce, status, created_ms, started_ms,
finished_ms, attempts, failures, losses, postponed, token, entry (in the stream), worker, cancel,
progress, result, error, dead, retention_ms.

A claim takes a stream's first entry and puts the next task of the same tenant at its end: tenants
take turns whatever they have waiting, and one that has as many running as it may waits for an end.
Lists and streams hold hints, a task's `status` is the truth:
an entry whose task is not queued any more is dropped when it is met. Times are the server's.
"""

from cluster.redis_client import Script

#: Of the streams; also the name of its one consumer: who owns an entry, the task's token says.
GROUP = "workers"

_PRELUDE = """
local root = KEYS[1]
local function key(...) return root .. ':' .. table.concat({...}, ':') end
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function field(id, name) return redis.call('HGET', key('task', id), name) end
local function next_turn(priority, tenant)
  local id = redis.call('LPOP', key('backlog', priority, tenant))
  if id then
    redis.call('XADD', key('ready', priority), '*', 'id', id, 'tenant', tenant)
  else
    redis.call('SREM', key('turns', priority), tenant)
  end
end
local function stop_running(id, tenant)
  redis.call('SREM', key('running', tenant), id)
  for _, priority in ipairs(redis.call('SMEMBERS', key('capped', tenant))) do
    redis.call('SADD', key('turns', priority), tenant)
    next_turn(priority, tenant)
  end
  redis.call('DEL', key('capped', tenant))
end
local function set_status(id, status)
  local t = redis.call('HMGET', key('task', id), 'tenant', 'type', 'status', 'created_ms')
  if t[3] then
    redis.call('ZREM', key('index', t[1], t[2], t[3]), id)
    redis.call('HINCRBY', key('counts'), t[3], -1)
  end
  redis.call('ZADD', key('index', t[1], t[2], status), t[4], id)
  redis.call('HINCRBY', key('counts'), status, 1)
  redis.call('HSET', key('task', id), 'status', status)
  if status == 'running' then
    redis.call('SADD', key('running', t[1]), id)
  elseif t[3] == 'running' then
    stop_running(id, t[1])
  end
end
local function push(id, where)
  local t = redis.call('HMGET', key('task', id), 'tenant', 'priority')
  local is_capped = redis.call('SISMEMBER', key('capped', t[1]), t[2]) == 1
  if not is_capped and redis.call('SADD', key('turns', t[2]), t[1]) == 1 then
    redis.call('XADD', key('ready', t[2]), '*', 'id', id, 'tenant', t[1])
  else
    redis.call(where, key('backlog', t[2], t[1]), id)
  end
end
local function delay(id, due)
  redis.call('ZADD', key('delayed'), due, id)
  redis.call('XADD', key('wake'), 'MAXLEN', 1, '*', 'id', id)
end
local function drop_entry(priority, entry)
  redis.call('XACK', key('ready', priority), 'workers', entry)
  redis.call('XDEL', key('ready', priority), entry)
end
local function release_lane(id)
  local lane = field(id, 'lane')
  if lane == '' or redis.call('HGET', key('lanes'), lane) ~= id then return end
  local following = redis.call('LPOP', key('lane', lane))
  while following and field(following, 'status') ~= 'queued' do
    following = redis.call('LPOP', key('lane', lane))
  end
  if following then
    redis.call('HSET', key('lanes'), lane, following)
    push(following, 'LPUSH')
  else
    redis.call('HDEL', key('lanes'), lane)
  end
end
local function stop_coalescing(id)
  local coalesce = field(id, 'coalesce')
  if coalesce ~= '' and redis.call('GET', key('waiting', coalesce)) == id then
    redis.call('DEL', key('waiting', coalesce))
  end
end
local function finish(id, status, result, err)
  local at = now()
  set_status(id, status)
  redis.call('HSET', key('task', id), 'finished_ms', at, 'result', result, 'error', err)
  redis.call('ZADD', key('expiry'), at + field(id, 'retention_ms'), id)
  redis.call('XADD', key('finished'), 'MAXLEN', '~', 1000, '*', 'id', id, 'status', status)
  stop_coalescing(id)
  release_lane(id)
end
local function die(id, result, err)
  finish(id, 'failed', result, err)
  redis.call('HSET', key('task', id), 'dead', 1)
  redis.call('ZADD', key('dead'), field(id, 'finished_ms'), id)
end
"""

# What a worker writes is refused once somebody else has claimed the task: LOST. DONE: it was
# written before, and only the reply was lost. Used as ARGV: id, token, …
_FENCE = """
local id = ARGV[1]
local t = redis.call('HMGET', key('task', id), 'token', 'status', 'entry', 'priority', 'cancel')
if t[1] ~= ARGV[2] then return -1 end
if t[2] ~= 'running' then return -2 end
local entry, priority = t[3], t[4]
local is_cancelled = t[5] == '1' and 1 or 0
"""
LOST = -1
DONE = -2
CANCEL_REQUESTED = 1

# ARGV: id, type, body, tenant, priority, lane, coalesce, delay_ms, retention_ms, once, digest
# -> {'new', 'known' or 'conflict', the fields of the task that was meant}
ENQUEUE = Script(
    _PRELUDE
    + """
local id, tenant, priority, coalesce = ARGV[1], ARGV[4], ARGV[5], ARGV[7]
local function answer(how, found) return {how, redis.call('HGETALL', key('task', found))} end
if redis.call('EXISTS', key('task', id)) == 1 then return answer('known', id) end
local once = key('once', tenant, ARGV[10])
if ARGV[10] ~= '' then
  local known = redis.call('HMGET', once, 'id', 'digest')
  if known[1] and redis.call('EXISTS', key('task', known[1])) == 1 then
    return answer(known[2] == ARGV[11] and 'known' or 'conflict', known[1])
  end
end
local waiting = coalesce ~= '' and redis.call('GET', key('waiting', coalesce))
local found = waiting or id
if ARGV[10] ~= '' then
  redis.call('HSET', once, 'id', found, 'digest', ARGV[11])
  redis.call('PEXPIRE', once, ARGV[9])
end
if waiting then return answer('known', waiting) end
local at = now()
redis.call('HSET', key('task', id), 'id', id, 'type', ARGV[2], 'body', ARGV[3], 'tenant', tenant,
  'priority', priority, 'lane', ARGV[6], 'coalesce', coalesce, 'created_ms', at,
  'retention_ms', ARGV[9])
set_status(id, 'queued')
if coalesce ~= '' then redis.call('SET', key('waiting', coalesce), id) end
if ARGV[8] ~= '0' then
  delay(id, at + ARGV[8])
else
  push(id, 'RPUSH')
end
return answer('new', id)
"""
)

# ARGV: worker, lease_ms, max_losses, number of priorities, how many tasks of a tenant may run
# -> {'task', fields of the task} or {'none', ms until a delayed one is due (-1: none), the last ids
# of the streams of each priority and of `wake`: what comes later wakes who waits}
CLAIM = Script(
    _PRELUDE
    + """
local lease_ms, max_losses, max_running, at = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5]), now()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('delayed'), '-inf', at, 'LIMIT', 0, 100)) do
  redis.call('ZREM', key('delayed'), id)
  push(id, 'RPUSH')
end
local function start(id, entry)
  local token = redis.call('INCR', key('fence'))
  set_status(id, 'running')
  redis.call('HSETNX', key('task', id), 'started_ms', at)
  redis.call('HINCRBY', key('task', id), 'attempts', 1)
  redis.call('HSET', key('task', id), 'token', token, 'entry', entry, 'worker', ARGV[1])
  stop_coalescing(id)
  return {'task', redis.call('HGETALL', key('task', id))}
end
local function has_lane(id)
  local lane = field(id, 'lane')
  if lane == '' then return true end
  local holder = redis.call('HGET', key('lanes'), lane)
  if holder and holder ~= id then
    redis.call('RPUSH', key('lane', lane), id)
    return false
  end
  redis.call('HSET', key('lanes'), lane, id)
  return true
end
local function claim_orphan(priority)
  local ready = key('ready', priority)
  while true do
    local idle = redis.call('XPENDING', ready, 'workers', 'IDLE', lease_ms, '-', '+', 1)[1]
    if not idle then return nil end
    local entry = idle[1]
    local found = redis.call('XCLAIM', ready, 'workers', 'workers', 0, entry)[1]
    local id = found and found[2][2]
    if not id or field(id, 'status') ~= 'running' or field(id, 'entry') ~= entry then
      drop_entry(priority, entry)
    elseif redis.call('HINCRBY', key('task', id), 'losses', 1) > max_losses then
      drop_entry(priority, entry)
      die(id, '', 'its worker died or froze ' .. max_losses + 1 .. ' times')
    elseif field(id, 'cancel') == '1' then
      drop_entry(priority, entry)
      finish(id, 'cancelled', '', '')
    else
      return start(id, entry)
    end
  end
end
local function wait_for_an_end(id, priority, tenant)
  if field(id, 'status') == 'queued' then
    redis.call('LPUSH', key('backlog', priority, tenant), id)
  end
  redis.call('SREM', key('turns', priority), tenant)
  redis.call('SADD', key('capped', tenant), priority)
end
local function claim_new(priority)
  local ready = key('ready', priority)
  for _ = 1, 1000 do
    local read = redis.call('XREADGROUP', 'GROUP', 'workers', 'workers', 'COUNT', 1,
      'STREAMS', ready, '>')
    if not read then return nil end
    local entry, fields = read[1][2][1][1], read[1][2][1][2]
    local id, tenant = fields[2], fields[4]
    if redis.call('SCARD', key('running', tenant)) >= max_running then
      wait_for_an_end(id, priority, tenant)
    else
      next_turn(priority, tenant)
      if field(id, 'status') == 'queued' and has_lane(id) then return start(id, entry) end
    end
    drop_entry(priority, entry)
  end
end
local last_ids = {}
for priority = 0, ARGV[4] - 1 do
  local ready = key('ready', priority)
  redis.pcall('XGROUP', 'CREATE', ready, 'workers', '0', 'MKSTREAM')
  local claimed = claim_orphan(priority) or claim_new(priority)
  if claimed then return claimed end
  local info = redis.call('XINFO', 'STREAM', ready)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last_ids[#last_ids + 1] = info[i + 1] end
  end
end
local wake = redis.call('XREVRANGE', key('wake'), '+', '-', 'COUNT', 1)[1]
last_ids[#last_ids + 1] = wake and wake[1] or '0-0'
local due = redis.call('ZRANGE', key('delayed'), 0, 0, 'WITHSCORES')
return {'none', due[2] and math.max(0, due[2] - at) or -1, last_ids}
"""
)

# ARGV: id, token -> LOST, DONE, 1: cancel was requested, 0
HEART_BEAT = Script(
    _PRELUDE
    + _FENCE
    + """
redis.call('XCLAIM', key('ready', priority), 'workers', 'workers', 0, entry, 'IDLE', 0, 'JUSTID')
return is_cancelled
"""
)

# ARGV: id, token, progress -> as HEART_BEAT
REPORT = Script(
    _PRELUDE
    + _FENCE
    + """
redis.call('HSET', key('task', id), 'progress', ARGV[3])
return is_cancelled
"""
)

# ARGV: id, token, item id, result, item id, result, … -> as HEART_BEAT. An item that has a result
# keeps it.
SAVE_ITEMS = Script(
    _PRELUDE
    + _FENCE
    + """
for i = 3, #ARGV, 2 do redis.call('HSETNX', key('items', id), ARGV[i], ARGV[i + 1]) end
return is_cancelled
"""
)

# ARGV: id, token, status, result, error, is_dead
FINISH = Script(
    _PRELUDE
    + _FENCE
    + """
drop_entry(priority, entry)
if ARGV[6] == '1' then die(id, ARGV[4], ARGV[5]) else finish(id, ARGV[3], ARGV[4], ARGV[5]) end
return 0
"""
)

# ARGV: id, token, delay_ms, error, the field that counts it. The lane stays with the task.
RETRY = Script(
    _PRELUDE
    + _FENCE
    + """
drop_entry(priority, entry)
redis.call('HINCRBY', key('task', id), ARGV[5], 1)
redis.call('HSET', key('task', id), 'error', ARGV[4])
if is_cancelled == 1 then
  finish(id, 'cancelled', '', ARGV[4])
else
  set_status(id, 'queued')
  delay(id, now() + ARGV[3])
end
return 0
"""
)

# ARGV: id, token. As if it had not been claimed.
GIVE_BACK = Script(
    _PRELUDE
    + _FENCE
    + """
drop_entry(priority, entry)
redis.call('HINCRBY', key('task', id), 'attempts', -1)
set_status(id, 'queued')
push(id, 'LPUSH')
return 0
"""
)

# ARGV: id -> its status now, or false
CANCEL = Script(
    _PRELUDE
    + """
local id = ARGV[1]
local status = field(id, 'status')
if status == 'queued' then
  redis.call('ZREM', key('delayed'), id)
  finish(id, 'cancelled', '', '')
elseif status == 'running' then
  redis.call('HSET', key('task', id), 'cancel', 1)
end
return field(id, 'status')
"""
)

# ARGV: id -> 1, or 0: it is no dead letter
REPLAY = Script(
    _PRELUDE
    + """
local id = ARGV[1]
if redis.call('ZREM', key('dead'), id) == 0 then return 0 end
redis.call('ZREM', key('expiry'), id)
redis.call('HDEL', key('task', id), 'dead', 'failures', 'losses', 'postponed', 'finished_ms',
  'result', 'cancel')
set_status(id, 'queued')
push(id, 'RPUSH')
return 1
"""
)

# ARGV: how many at most -> how many finished tasks were forgotten
SWEEP = Script(
    _PRELUDE
    + """
local ids = redis.call('ZRANGEBYSCORE', key('expiry'), '-inf', now(), 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ids) do
  local t = redis.call('HMGET', key('task', id), 'tenant', 'type', 'status')
  redis.call('ZREM', key('index', t[1], t[2], t[3]), id)
  redis.call('HINCRBY', key('counts'), t[3], -1)
  redis.call('ZREM', key('dead'), id)
  redis.call('ZREM', key('expiry'), id)
  redis.call('DEL', key('task', id), key('items', id))
end
return #ids
"""
)
