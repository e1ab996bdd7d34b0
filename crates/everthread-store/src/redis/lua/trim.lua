-- Drops folded records from the beginning of a log and keeps a text in their place.
--
-- KEYS  1 meta  2 folded  3 base
-- ARGV  1 expected version  2 floor when they were read  3 the new floor  4 the seq before it
--       5 bytes of the blocks that are dropped  6 the text  7 most epochs
-- Returns {'ok'} {'none'} {'archived'} {'moved', version} {'elsewhere', floor} {'gone'}
--
-- Atomic because a reader must find every entry from the floor on, and for what is before it the text that belongs to that
-- floor; and because what nobody needed when it was read may be needed by a decision made since: so it moves the version,
-- too, in an epoch of this primary (epoch.lua stands before this text). Full memory does not stop it, as it frees more than
-- it takes.

local m = redis.call('HMGET', KEYS[1], 'epoch', 'n', 'floor', 'folded_bytes', 'archived', 'head')
if not m[1] then return {'none'} end
if m[5] then return {'archived'} end
local version, floor = m[1] .. '.' .. (m[2] or '0'), m[3] or '1'
if version ~= ARGV[1] then return {'moved', version} end
if floor ~= ARGV[2] then return {'elsewhere', floor} end
local last = ARGV[4] .. '-0'
if #redis.call('XRANGE', KEYS[2], last, last) == 0 then return {'gone'} end

epoch_in_force(KEYS[1], m[1], m[6] or 0, ARGV[7])
redis.call('SET', KEYS[3], ARGV[3] .. ' ' .. ARGV[6])
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[3] .. '-0')
local left = math.max(0, tonumber(m[4] or 0) - tonumber(ARGV[5]))
redis.call('HSET', KEYS[1], 'floor', ARGV[3], 'folded_bytes', string.format('%.0f', left),
           'n', string.format('%.0f', (m[2] or 0) + 1))
return {'ok'}
