-- Notes that a worker has got a control, and wakes those who follow the session's controls.
--
-- KEYS  1 delivered  2 meta
-- ARGV  1 control   2 worker   3 memory in ms   4 most controls   5 channel of state changes
-- Returns nothing
--
-- Atomic because whoever is woken must find the mark, and a mark must not stay without its expiry, nor after its session.

if redis.call('EXISTS', KEYS[2]) == 0 then return end
local marks, most = KEYS[1], tonumber(ARGV[4])
if redis.call('HLEN', marks) >= most and redis.call('HEXISTS', marks, ARGV[1]) == 0 then
  local all, old = redis.call('HGETALL', marks), {}
  for i = 1, #all, 2 do old[#old + 1] = {tonumber(string.match(all[i + 1], '^%d+')), all[i]} end
  table.sort(old, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
  -- The oldest eighth goes, so that the next scan is far away.
  for i = 1, math.ceil(most / 8) do redis.call('HDEL', marks, old[i][2]) end
end
local time = redis.call('TIME')
redis.call('HSET', marks, ARGV[1], string.format('%.0f', time[1] * 1000000 + time[2]) .. ' ' .. ARGV[2])
redis.call('PEXPIRE', marks, ARGV[3])
redis.call('SPUBLISH', ARGV[5], '')
