-- Moves the durable cursor of a device forward, and mirrors it to the device's consumer group.
--
-- KEYS  1 meta  2 devices  3 log
-- ARGV  1 device   2 epoch   3 seq   4 idle time after which a device is forgotten, in ms   5 most devices
--       6 least time between two moves of the group, in ms
-- Returns {'none'} if there is no session, {'foreign'} if the cursor is not of this log, else {'ok', epoch, seq}
--
-- A device is a field: '<epoch>.<seq> <at> <mirrored at>'.
-- Atomic because the comparison with the log, and with the cursor that is known, must hold when the cursor moves; and
-- because the group, which Redis lets go back and beyond the end, may only follow the field.

local function text(number) return string.format('%.0f', number) end

local meta = redis.call('HMGET', KEYS[1], 'epochs', 'head', 'archived')
if not meta[1] then return {'none'} end
local head = tonumber(meta[2])
-- A stub has no log, and must not get one.
local has_log = redis.call('EXISTS', KEYS[3]) == 1

-- Each epoch with its place in the table, and the first seq of the next one.
local index, ends, places = {}, {}, 0
for epoch, since in string.gmatch(meta[1], '(%d+):(%d+)') do
  ends[places] = tonumber(since)
  places = places + 1
  index[epoch] = places
end
local function valid(epoch, seq)
  local place = index[epoch]
  return place and seq <= head and (not ends[place] or seq < ends[place])
end

local device, epoch, seq = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not valid(epoch, seq) then return {'foreign'} end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HGET', KEYS[2], device)
local mirrored = 0
if known then
  local known_epoch, known_seq, at
  known_epoch, known_seq, at, mirrored = string.match(known, '^(%d+)%.(%d+) (%d+) (%d+)$')
  known_seq, mirrored = tonumber(known_seq), tonumber(mirrored)
  if valid(known_epoch, known_seq)
     and (known_seq > seq or (known_seq == seq and index[known_epoch] >= index[epoch])) then
    epoch, seq = known_epoch, known_seq
  end
else
  -- Room for a new one: first those that were not heard of for long, then the one idle for longest.
  local all, oldest, oldest_at = redis.call('HGETALL', KEYS[2]), nil, nil
  local left = #all / 2
  for i = 1, #all, 2 do
    local at = tonumber(string.match(all[i + 1], ' (%d+) '))
    if now - at > tonumber(ARGV[4]) then
      redis.call('HDEL', KEYS[2], all[i])
      if has_log then redis.call('XGROUP', 'DESTROY', KEYS[3], all[i]) end
      left = left - 1
    elseif not oldest or at < oldest_at or (at == oldest_at and all[i] < oldest) then
      oldest, oldest_at = all[i], at
    end
  end
  if left >= tonumber(ARGV[5]) then
    redis.call('HDEL', KEYS[2], oldest)
    if has_log then redis.call('XGROUP', 'DESTROY', KEYS[3], oldest) end
  end
end

-- The end of the log is mirrored at once: nothing may come after it that would.
if not meta[3] and (seq == head or now - mirrored >= tonumber(ARGV[6])) then
  local id, read = text(seq) .. '-0', {}
  if seq == head and has_log then
    -- Only here the number of records before the cursor is known, without which Redis cannot tell the group's lag.
    local info = redis.call('XINFO', 'STREAM', KEYS[3])
    for i = 1, #info, 2 do
      if info[i] == 'entries-added' then read = {'ENTRIESREAD', info[i + 1]} end
    end
  end
  local moved = redis.pcall('XGROUP', 'SETID', KEYS[3], device, id, unpack(read))
  if type(moved) == 'table' and moved.err then
    if #read > 0 then
      redis.call('XGROUP', 'CREATE', KEYS[3], device, id, 'MKSTREAM', unpack(read))
    else
      redis.call('XGROUP', 'CREATE', KEYS[3], device, id, 'MKSTREAM')
    end
  end
  mirrored = now
end
redis.call('HSET', KEYS[2], device, epoch .. '.' .. text(seq) .. ' ' .. text(now) .. ' ' .. text(mirrored))
return {'ok', epoch, text(seq)}
