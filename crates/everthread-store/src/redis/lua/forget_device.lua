-- Forgets a device and its consumer group.
--
-- KEYS  1 devices  2 log
-- ARGV  1 device
-- Returns 1 if it was known, else 0
--
-- Atomic because a group without its device would stay for ever.

if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('XGROUP', 'DESTROY', KEYS[2], ARGV[1]) end
return redis.call('HDEL', KEYS[1], ARGV[1])
