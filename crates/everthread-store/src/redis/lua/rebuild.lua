-- Decides which node builds the indexes anew.
--
-- KEYS  1 the turn
-- ARGV  1 node   2 how long ago it was wanted, in ms   3 how long a turn lasts without a sign of life, in ms; '' ends it
-- Returns 'yours <now>', 'anothers' or 'done'
--
-- Atomic because two nodes that see the same failover must not both do it. A turn whose node dies runs out; what counts as
-- done is when a turn that was finished began, since it may have passed what changed later.

local key, node = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local m = redis.call('HMGET', key, 'node', 'until', 'began', 'done')
local is_held = m[1] and tonumber(m[2] or 0) > now
if ARGV[3] == '' then
  if is_held and m[1] == node then
    redis.call('HSET', key, 'done', m[3])
    redis.call('HDEL', key, 'node', 'until')
  end
  return 'done'
end
if is_held and m[1] ~= node then return 'anothers' end
if not is_held then
  if m[4] and tonumber(m[4]) >= now - ARGV[2] then return 'done' end
  redis.call('HSET', key, 'node', node, 'began', string.format('%.0f', now))
end
redis.call('HSET', key, 'until', string.format('%.0f', now + ARGV[3]))
redis.call('PEXPIRE', key, 86400000)
return 'yours ' .. string.format('%.0f', now)
