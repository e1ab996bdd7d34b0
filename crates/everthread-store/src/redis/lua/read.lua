-- Begins a page: where the log ends, and the first records there are, folded or raw.
--
-- KEYS  1 meta  2 log  3 folded
-- ARGV  1 first seq of the page   2 how many raw records   3 how many folded ones
-- Returns {} if there is no session, else
-- {{epoch, since, head, n, active, folded_to, floor, folded_bytes, archived, epochs}, records}
--
-- Atomic because the seam between folded and raw says which of the streams has an entry: records move from one to the
-- other. A script and no transaction, because a transaction is refused while memory is full, even if it only reads.

local meta = redis.call('HMGET', KEYS[1], 'epoch', 'since', 'head', 'n', 'active', 'folded_to', 'floor', 'folded_bytes',
                        'archived', 'epochs')
if not meta[1] then return {} end
local first, folded_to, floor = ARGV[1], meta[6], meta[7]
-- What is below the floor was dropped: the page begins there.
if floor and tonumber(first) < tonumber(floor) then first = floor end
local from = first .. '-0'
if folded_to and tonumber(first) <= tonumber(folded_to) then
  return {meta, redis.call('XRANGE', KEYS[3], from, folded_to .. '-0', 'COUNT', ARGV[3])}
end
return {meta, redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', ARGV[2])}
