-- Declares a worker gone, unless somebody else holds it by now.
--
-- KEYS  1 worker
-- ARGV  1 holder
-- Returns 1 if the worker is gone, 0 if another holds it
--
-- Atomic because a worker that came back between the comparison and the deletion would be buried alive.

local holder = redis.call('GET', KEYS[1])
if not holder then return 1 end
if holder ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
return 1
