-- Sends a node's probe on its way through the live feed and tells which primary this is.
--
-- KEYS  1 the node's liveness key: fixes the slot
-- ARGV  1 channel  2 number of the probe
-- Returns the primary's replication id
--
-- Atomic because the id must be that of the primary that sent the probe.

redis.call('SPUBLISH', ARGV[1], ARGV[2])
return string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
