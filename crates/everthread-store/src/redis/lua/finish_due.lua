-- Ends a claim on a due session, unless it was armed or claimed since.
--
-- KEYS  1 deadlines
-- ARGV  1 session  2 claim  3 next due in ms, or ''
-- Returns 1 if the claim was still in force, else 0
--
-- Atomic because a deadline that is armed between the comparison and the change would be lost.

local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score or tonumber(score) ~= tonumber(ARGV[2]) + 0.5 then return 0 end
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
end
return 1
