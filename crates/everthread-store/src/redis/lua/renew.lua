#!lua flags=allow-oom
-- Renews leases of one session's runs, and tells where its log ends.
--
-- KEYS  1 meta
-- ARGV  1 what the leases have left at least, in ms   2… run, fence, run, fence, …
-- Returns {epoch, since, head, n, active, folded_to, floor, folded_bytes, archived}, all nil if there is no session
--
-- Atomic because a run may change hands between the comparison of its fence and the renewal: the next holder's lease is
-- not ours to move. Full memory does not stop it: else the leases of workers that live would run out meanwhile.

local time = redis.call('TIME')
local ends = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
for i = 2, #ARGV, 2 do
  local held = redis.call('HMGET', KEYS[1], 'f:' .. ARGV[i], 'l:' .. ARGV[i])
  if held[1] == ARGV[i + 1] and ends > tonumber(held[2] or 0) then
    redis.call('HSET', KEYS[1], 'l:' .. ARGV[i], string.format('%.0f', ends))
  end
end
return redis.call('HMGET', KEYS[1], 'epoch', 'since', 'head', 'n', 'active', 'folded_to', 'floor',
                  'folded_bytes', 'archived')
