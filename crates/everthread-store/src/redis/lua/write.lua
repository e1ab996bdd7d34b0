-- The one write: appends a record and changes the state of one session, or refuses and changes nothing.
--
-- KEYS  1 meta  2 log  3 producers  4 tombstone
-- ARGV  1 end of the record   2 count of entries    3 not_after in ms, or ''
--       4 producer or ''      5 incarnation         6 batch                7 answer to keep
--       8 run of the fence or ''                    9 fence
--      10 '' no change, 'new', or the expected version
--      11 state              12 next due in ms, or ''   13 run to grant a fence or ''
--      14 run that must not have written or ''          15 its incarnation
--      16 channel of state changes   17 memory of producers in ms   18 most producers   19 most epochs
--      20 lease of the run that is granted a fence, in ms
--      21… runs that lose their fences and leases
-- Returns {'ok', epoch, to, at, version, fence or '', folded_to}
--         {'duplicate', epoch, to, version, batch, answer, folded_to}
--         {'none'} {'exists'} {'archived'} {'late'} {'fenced'} {'gap', expected} {'conflict', version} {'written'}
--         {'corrupt', why}
--
-- Atomic because every number is picked, every check made and every follower woken in one step: nobody can write
-- between the check of a fence, a batch or a version and the append that relies on it. All checks come before the
-- first change, since Redis does not undo what a failing script has done.
--
-- The producer of a run stands in meta beside the run's fence, as '<incarnation> <batch> <to>', with its answer behind that
-- if it has one, so that append.lua finds both at once. When the fence goes it moves to the others, which are forgotten after
-- a while: '<incarnation> <batch> <to> <at> <answer>'.

-- `..` and tostring round microseconds to 14 digits.
local function text(number) return string.format('%.0f', number) end
-- Incarnations and batches are 64 bits wide, more than Lua's numbers hold: compared as decimal text.
local function less(a, b) if #a ~= #b then return #a < #b end return a < b end

local meta, log, producers = KEYS[1], KEYS[2], KEYS[3]
local count = tonumber(ARGV[2])
local producer, incarnation, batch = ARGV[4], ARGV[5], ARGV[6]
local fence_run, change = ARGV[8], ARGV[10]
local grant, unwritten = ARGV[13], ARGV[14]
local writer = string.match(producer, '^run:(.+)$')

local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)

local m = redis.call('HMGET', meta, 'epoch', 'n', 'head', 'replid', 'fence_last', 'active', 'pruned',
                     'f:' .. fence_run, 'f:' .. (writer or ''), 'folded_to', 'archived', 'p:' .. (writer or ''))
local epoch, n, head, replid = m[1], tonumber(m[2] or 0), tonumber(m[3] or 0), m[4]
local fence_last = m[5]
local version = epoch and (epoch .. '.' .. text(n))
local folded_to = m[10] or '0'

-- 1. The session.
if change == 'new' then
  if epoch then return {'exists'} end
  -- Parts of a session that has lost its meta are evidence, not ours to overwrite.
  if redis.call('EXISTS', log, producers) > 0 then return {'corrupt', 'meta is gone, the log is there'} end
elseif not epoch then
  return {'none'}
elseif m[11] then
  return {'archived'}
end

-- 2. A duplicate. 3. The time. 4. The fence. 5. A gap.
local known_incarnation, known_batch
if producer ~= '' then
  local to, answer
  if m[12] then
    known_incarnation, known_batch, to, answer = string.match(m[12], '^(%d+) (%d+) (%d+) ?(.*)$')
  else
    local known = redis.call('HGET', producers, producer) or ''
    known_incarnation, known_batch, to, answer = string.match(known, '^(%d+) (%d+) (%d+) %d+ (.*)$')
  end
  if known_incarnation then
    if incarnation == known_incarnation and not less(known_batch, batch) then
      return {'duplicate', epoch, to, version, known_batch, answer, folded_to}
    end
  end
end
if ARGV[3] ~= '' and now > tonumber(ARGV[3]) then return {'late'} end
if fence_run ~= '' and m[8] ~= ARGV[9] then return {'fenced'} end
if producer ~= '' then
  local expected = '1'
  if known_incarnation then
    if less(incarnation, known_incarnation) then return {'fenced'} end
    if incarnation == known_incarnation then expected = text(known_batch + 1) end
  end
  if batch ~= expected then return {'gap', expected} end
end

-- 6. The version.
if change ~= '' and change ~= 'new' and change ~= version then return {'conflict', version} end
if unwritten ~= '' then
  local known = redis.call('HGET', meta, 'p:' .. unwritten) or redis.call('HGET', producers, 'run:' .. unwritten)
  if known and not less(string.match(known, '^%d+'), ARGV[15]) then return {'written'} end
end

-- From here on everything succeeds.
local set = {}
local function put(field, value) set[#set + 1] = field; set[#set + 1] = value end

local last_epoch = epoch
if change == 'new' then
  -- One of this name may have been deleted: what was numbered for it must not fit this one.
  local gone = redis.call('GET', KEYS[4])
  if gone then
    last_epoch, fence_last = string.match(gone, '^(%d+) (%d+)$')
    put('fence_last', fence_last)
    redis.call('DEL', KEYS[4])
  end
end

-- Another primary, or this one started anew: a tail that was acknowledged may be gone.
local primary = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
local moved = replid ~= primary
if moved then
  epoch = text(math.max(tonumber(last_epoch or 0) + 1, micros))
  local table_ = {}
  for pair in string.gmatch(redis.call('HGET', meta, 'epochs') or '', '%S+') do table_[#table_ + 1] = pair end
  table_[#table_ + 1] = epoch .. ':' .. text(head + 1)
  while #table_ > tonumber(ARGV[19]) do table.remove(table_, 1) end
  put('epoch', epoch)
  put('since', text(head + 1))
  put('epochs', table.concat(table_, ' '))
  put('replid', primary)
end

local from, to = head + 1, head + count
local record
if count > 0 then
  record = '["' .. epoch .. '",' .. text(from) .. ',' .. text(now) .. ARGV[1]
  redis.call('XADD', log, text(to) .. '-0', 'r', record)
end
if count > 0 or change == 'new' then put('head', text(to)) end

-- The producer of a run goes where its fence does not, and comes back with it.
local function part(run)
  local known = redis.call('HGET', meta, 'p:' .. run)
  if not known then return end
  redis.call('HDEL', meta, 'p:' .. run)
  local numbers, answer = string.match(known, '^(%d+ %d+ %d+) ?(.*)$')
  redis.call('HSET', producers, 'run:' .. run, numbers .. ' ' .. text(now) .. ' ' .. answer)
end
local function join(run)
  local numbers, answer =
    string.match(redis.call('HGET', producers, 'run:' .. run) or '', '^(%d+ %d+ %d+) %d+ (.*)$')
  if not numbers then return end
  redis.call('HDEL', producers, 'run:' .. run)
  redis.call('HSET', meta, 'p:' .. run, numbers .. (answer ~= '' and ' ' .. answer or ''))
end

local fence, is_held = '', m[9]
if change ~= '' then
  n = n + 1
  put('n', text(n))
  put('state', ARGV[11])
  put('next_due', ARGV[12])
  local active = tonumber(m[6] or 0)
  -- First what is taken away: a run that is taken from one worker and given to the next keeps the new fence.
  for i = 21, #ARGV do
    active = active - redis.call('HDEL', meta, 'f:' .. ARGV[i])
    redis.call('HDEL', meta, 'l:' .. ARGV[i])
    if ARGV[i] ~= grant then part(ARGV[i]) end
    if ARGV[i] == writer then is_held = false end
  end
  if grant ~= '' then
    fence = text(math.max(tonumber(fence_last or 0) + 1, micros))
    active = active + 1 - redis.call('HEXISTS', meta, 'f:' .. grant)
    put('f:' .. grant, fence)
    put('l:' .. grant, text(now + ARGV[20]))
    put('fence_last', fence)
    join(grant)
    if grant == writer then is_held = true end
  end
  put('active', text(active))
end

-- Producers are remembered for a while after their run, so that a repeat is still known as one. The scan is rare.
local memory, most = tonumber(ARGV[17]), tonumber(ARGV[18])
local crowded = producer ~= '' and not is_held and not known_batch and redis.call('HLEN', producers) >= most
if crowded or (producer ~= '' and now - tonumber(m[7] or 0) >= 60000) then
  local all, old = redis.call('HGETALL', producers), {}
  for i = 1, #all, 2 do
    local at = tonumber(string.match(all[i + 1], '^%d+ %d+ %d+ (%d+)'))
    if all[i] ~= producer then
      if now - at > memory then redis.call('HDEL', producers, all[i])
      else old[#old + 1] = {at, all[i]} end
    end
  end
  -- Still too many: the oldest eighth goes, so that the next scan is far away.
  if redis.call('HLEN', producers) >= most then
    table.sort(old, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
    for i = 1, math.min(#old, math.ceil(most / 8)) do redis.call('HDEL', producers, old[i][2]) end
  end
  put('pruned', text(now))
end
if producer ~= '' then
  local numbers = incarnation .. ' ' .. batch .. ' ' .. text(to)
  if is_held then
    put('p:' .. writer, numbers .. (ARGV[7] ~= '' and ' ' .. ARGV[7] or ''))
  else
    redis.call('HSET', producers, producer, numbers .. ' ' .. text(now) .. ' ' .. ARGV[7])
  end
end

if #set > 0 then redis.call('HSET', meta, unpack(set)) end
if record then redis.call('SPUBLISH', log, text(to) .. ' ' .. record) end
-- The version has moved with the epoch, too.
if moved or change ~= '' then redis.call('SPUBLISH', ARGV[16], text(n)) end
return {'ok', epoch, text(to), text(now), epoch .. '.' .. text(n), fence, folded_to}
