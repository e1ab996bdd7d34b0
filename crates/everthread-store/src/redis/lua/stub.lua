#!lua flags=allow-oom
-- Takes log and state of a session out of the store and leaves a stub.
--
-- KEYS  1 meta  2 log  3 folded  4 base  5 producers  6 delivered
-- ARGV  1 expected version   2 expected head   3 object   4 brief state   5 when   6 memory of producers in ms
-- Returns {'ok'} {'none'} {'elsewhere'}
--
-- Atomic because whatever is written between the comparison and the removal would be lost. What a stub keeps is what
-- cursors, devices and lists need, and producers for as long as a repeat may come. Full memory does not stop it, as it
-- frees more than it takes.

local m = redis.call('HMGET', KEYS[1], 'epoch', 'n', 'head', 'active', 'archived')
if not m[1] then return {'none'} end
local version = m[1] .. '.' .. m[2]
if m[5] or version ~= ARGV[1] or m[3] ~= ARGV[2] or tonumber(m[4] or 0) > 0 then return {'elsewhere'} end

redis.call('HSET', KEYS[1], 'archived', ARGV[3], 'state', ARGV[4], 'archived_at', ARGV[5], 'next_due', '')
redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[4], KEYS[6])
redis.call('PEXPIRE', KEYS[5], ARGV[6])
return {'ok'}
