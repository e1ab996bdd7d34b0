-- Makes a session out of what was staged for it: in the place of nothing, or of a stub.
--
-- KEYS  1 meta  2 log  3 folded  4 staged  5 base  6 producers  7 tombstone
-- ARGV  1 '' for nothing, or the object that the stub names
--       2 table of epochs   3 head   4 changes   5 last fence   6 floor   7 base or ''   8 bytes of what was staged
--       9 state   10 next due in ms, or ''   11 '1' if something was staged   12 seq after the head
--      13 end of the first record, or ''   14 count of its entries   15 most epochs   16 channel of state changes
--      17 epoch of the tombstone that was there when the planter began, or ''
-- Returns {'ok', epoch, to, version} {'elsewhere'} {'unstaged'} {'corrupt', why}
--
-- Atomic because a reader must find the session whole or not at all, and because two nodes may plant at once: the second
-- finds the first one's session. All checks come before the first change. Over a stub the version goes on, in an epoch of
-- this primary (epoch.lua stands before this text): the stub may have lost what it knew last.

-- `..` and tostring round microseconds to 14 digits.
local function text(number) return string.format('%.0f', number) end

local meta, log, folded, staged, base = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local over, head = ARGV[1], ARGV[3]

-- What is staged is gone either way.
local function refuse(...)
  redis.call('UNLINK', staged)
  return {...}
end

local m = redis.call('HMGET', meta, 'epoch', 'n', 'head', 'archived', 'epochs')
if over == '' and m[1] then return refuse('elsewhere') end
-- One that was planted and deleted since must stay deleted.
local gone_epoch, gone_fence = string.match(redis.call('GET', KEYS[7]) or '', '^(%d+) (%d+)')
if over == '' and gone_epoch and gone_epoch ~= ARGV[17] then return refuse('elsewhere') end
if over ~= '' and (m[4] ~= over or m[3] ~= head) then return refuse('elsewhere') end
if redis.call('XLEN', log) + redis.call('XLEN', folded) > 0 then
  return refuse('corrupt', 'a log is there, its session is not')
end
if ARGV[11] == '1' then
  local first = redis.call('XRANGE', staged, '-', '+', 'COUNT', 1)[1]
  local last = redis.call('XREVRANGE', staged, '+', '-', 'COUNT', 1)[1]
  if not first or last[1] ~= head .. '-0' then return refuse('unstaged') end
  if string.match(first[2][2], '^%["%d+",(%d+),') ~= ARGV[6] then return refuse('unstaged') end
end

-- From here on everything succeeds.
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = text(math.floor(micros / 1000))
local set = {}
local function put(field, value) set[#set + 1] = field; set[#set + 1] = value end

local n, epoch, epochs
if over == '' then
  n, epochs = tonumber(ARGV[4]), ARGV[2]
  local fence = ARGV[5]
  if gone_fence and tonumber(gone_fence) > tonumber(fence) then fence = gone_fence end
  put('fence_last', fence)
  redis.call('DEL', KEYS[7])
  -- The last epoch, and where it begins.
  local since
  for e, s in string.gmatch(epochs, '(%d+):(%d+)') do epoch, since = e, s end
  if ARGV[13] ~= '' then
    epoch = text(math.max(tonumber(epoch or 0) + 1, tonumber(gone_epoch or 0) + 1, micros))
    local pairs_ = {}
    for pair in string.gmatch(epochs, '%S+') do pairs_[#pairs_ + 1] = pair end
    pairs_[#pairs_ + 1] = epoch .. ':' .. ARGV[12]
    while #pairs_ > tonumber(ARGV[15]) do table.remove(pairs_, 1) end
    epochs, since = table.concat(pairs_, ' '), ARGV[12]
    put('replid', string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)'))
  end
  -- Without entries of its own its first write begins an epoch: no primary is known.
  put('epoch', epoch)
  put('since', since)
  put('epochs', epochs)
else
  n, epoch = tonumber(m[2]) + 1, epoch_in_force(meta, m[1], head, ARGV[15])
end

local to, record = head, nil
redis.call('UNLINK', log, folded)
if ARGV[11] == '1' then
  redis.call('RENAME', staged, folded)
  redis.call('PERSIST', folded)
else
  redis.call('UNLINK', staged)
end
if ARGV[13] ~= '' then
  to = text(head + ARGV[14])
  record = '["' .. epoch .. '",' .. ARGV[12] .. ',' .. now .. ARGV[13]
  redis.call('XADD', log, to .. '-0', 'r', record)
end
if ARGV[7] ~= '' then redis.call('SET', base, ARGV[6] .. ' ' .. ARGV[7]) else redis.call('UNLINK', base) end
redis.call('PERSIST', KEYS[6])
redis.call('HDEL', meta, 'archived', 'archived_at')
put('head', to)
put('n', text(n))
put('folded_to', head)
put('folded_bytes', ARGV[8])
put('floor', ARGV[6])
put('state', ARGV[9])
put('next_due', ARGV[10])
put('active', '0')
redis.call('HSET', meta, unpack(set))
if record then redis.call('SPUBLISH', log, to .. ' ' .. record) end
redis.call('SPUBLISH', ARGV[16], text(n))
return {'ok', epoch, to, epoch .. '.' .. text(n)}
