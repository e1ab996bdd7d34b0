-- Changes who is present in a session, and wakes those who follow that.
--
-- KEYS  1 presence
-- ARGV  1 how long it is kept, in ms   2… field, since in ms or '', text; field, …: without text the field goes
-- Returns nothing
--
-- A value is '<since> <at> <text>'.
-- Atomic because whoever is woken must find the change, and the hash must not stay without its expiry.

local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
for i = 2, #ARGV, 3 do
  local field, since, about = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if about == '' then
    redis.call('HDEL', KEYS[1], field)
  else
    if since == '' then
      local known = redis.call('HGET', KEYS[1], field)
      since = known and string.match(known, '^%d+') or now
    end
    redis.call('HSET', KEYS[1], field, since .. ' ' .. now .. ' ' .. about)
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('SPUBLISH', KEYS[1], '')
