-- Begins a page: where the log ends, and the first records there are, folded or raw.
--
-- KEYS  1 meta  2 log  3 folded
-- ARGV  1 first seq of the page   2 how many raw records   3 how many folded ones
-- Returns {} if there is no session, else {{epoch, since, head, n, active, folded_to, archived, epochs}, records}
--
-- Atomic because the seam between folded and raw says which of the streams has an entry: records move from one to the
-- other. A script and no transaction, because a transaction is refused while memory is full, even if it only reads.

local meta = redis.call('HMGET', KEYS[1], 'epoch', 'since', 'head', 'n', 'active', 'folded_to', 'archived', 'epochs')
if not meta[1] then return {} end
local from, folded_to = ARGV[1] .. '-0', meta[6]
if folded_to and tonumber(ARGV[1]) <= tonumber(folded_to) then
  return {meta, redis.call('XRANGE', KEYS[3], from, folded_to .. '-0', 'COUNT', ARGV[3])}
end
return {meta, redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', ARGV[2])}
