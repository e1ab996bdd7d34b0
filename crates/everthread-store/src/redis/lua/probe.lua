-- Sends a node's probe on its way through the live feed and tells which primary this is.
--
-- KEYS  1 fixes the slot; there need be nothing behind it
-- ARGV  1 channel  2 number of the probe
-- Returns the primary's replication id, or '' from a replica, where nothing is sent
--
-- Atomic because the id must be that of the primary that sent the probe.

local told = redis.call('INFO', 'replication')
if not string.find(told, 'role:master', 1, true) then return '' end
redis.call('SPUBLISH', ARGV[1], ARGV[2])
return string.match(told, 'master_replid:(%w+)')
