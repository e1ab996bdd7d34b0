-- Takes a session off the list of its tenant, unless it was active since, and wakes followers of the tenant.
--
-- KEYS  1 sessions of the tenant
-- ARGV  1 session  2 when it was last active, as it was listed, in ms  3 channel of the tenant's changes
-- Returns nothing
--
-- Atomic because a session that is made anew between the comparison and the removal would be missing from the list.

local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if score and tonumber(score) == tonumber(ARGV[2]) then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('SPUBLISH', ARGV[3], ARGV[2] .. ' ' .. ARGV[1])
end
