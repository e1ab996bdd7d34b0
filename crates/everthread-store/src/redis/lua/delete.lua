#!lua flags=allow-oom
-- Removes a session, leaves a tombstone, and wakes those who follow it.
--
-- KEYS  1 meta  2 tombstone  3 log  4 presence  5… whatever else there is of the session
-- ARGV  1 how long the tombstone is kept, in ms   2 channel of state changes   3 expected version, or ''   4 expected head
-- Returns {'ok', epoch, head} {'none'} {'moved'}
--
-- A tombstone is '<epoch> <greatest fence>': one made anew begins above both, see write.lua.
-- Atomic because nobody may find half of a session, and a write must find all of it or none. Parts that have lost their
-- meta go, too. An empty message is no record: followers compare with the log, and learn it there. Full memory does not
-- stop it, as it frees some.

local m = redis.call('HMGET', KEYS[1], 'epoch', 'head', 'fence_last', 'n')
if m[1] and ARGV[3] ~= '' and (m[1] .. '.' .. (m[4] or '0') ~= ARGV[3] or (m[2] or '0') ~= ARGV[4]) then
  return {'moved'}
end
if m[1] then
  redis.call('SET', KEYS[2], m[1] .. ' ' .. (m[3] or '0'), 'PX', ARGV[1])
end
local gone = redis.call('UNLINK', KEYS[1], KEYS[3], KEYS[4])
for i = 5, #KEYS do gone = gone + redis.call('UNLINK', KEYS[i]) end
if gone > 0 then
  redis.call('SPUBLISH', KEYS[3], '')
  redis.call('SPUBLISH', ARGV[2], '')
  redis.call('SPUBLISH', KEYS[4], '')
end
if not m[1] then return {'none'} end
return {'ok', m[1], m[2] or '0'}
