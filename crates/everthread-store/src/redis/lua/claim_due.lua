-- Takes sessions whose time has come and hides them for a while.
--
-- KEYS  1 deadlines
-- ARGV  1 most sessions  2 visibility in ms
-- Returns {session, claim, …}; the score of a claimed session is its claim + 0.5, see arm.lua
--
-- Atomic because two nodes that look at the same moment must not both take a session.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGE', KEYS[1], '-inf', string.format('%.0f', now), 'BYSCORE', 'LIMIT', 0, ARGV[1])
local claim = string.format('%.0f', now + ARGV[2])
local taken = {}
for _, member in ipairs(due) do
  redis.call('ZADD', KEYS[1], claim .. '.5', member)
  taken[#taken + 1] = member
  taken[#taken + 1] = claim
end
return taken
