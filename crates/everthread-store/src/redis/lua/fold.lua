#!lua flags=allow-oom
-- Puts folded records in the place of the raw ones that they stand for.
--
-- KEYS  1 meta  2 log  3 folded
-- ARGV  1 epoch of the head when the log was read   2 first seq   3 last seq   4 the seq after it
--       5 bytes of their blocks   6… seq of the last entry, record, seq of the last entry, record, …
-- Returns {'ok'} {'none'} {'archived'} {'epoch', epoch} {'elsewhere', folded_to} {'gone'}
--
-- Atomic because a reader must find every entry in one stream or the other, and because two nodes may fold at once: the
-- second finds the seam moved. After a failover the log may have lost what was read, and may have grown again
-- differently: then the epoch has moved, or there is no record that ends there. Full memory does not stop it, as it
-- frees more than it takes.

local m = redis.call('HMGET', KEYS[1], 'epoch', 'folded_to', 'archived')
local folded_to = m[2] or '0'
if not m[1] then return {'none'} end
if m[3] then return {'archived'} end
if m[1] ~= ARGV[1] then return {'epoch', m[1]} end
if string.format('%.0f', folded_to + 1) ~= ARGV[2] then return {'elsewhere', folded_to} end
local last = ARGV[3] .. '-0'
if #redis.call('XRANGE', KEYS[2], last, last) == 0 then return {'gone'} end

for i = 6, #ARGV, 2 do redis.call('XADD', KEYS[3], ARGV[i] .. '-0', 'r', ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'folded_to', ARGV[3])
redis.call('HINCRBY', KEYS[1], 'folded_bytes', ARGV[5])
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[4] .. '-0')
return {'ok'}
