-- Puts records aside for a plant.
--
-- KEYS  1 staged
-- ARGV  1 how long they are kept, in ms   2 last seq of the records   3 first seq of them
--       4… seq of the last entry, record, seq of the last entry, record, …
-- Returns {'ok'} {'gap'}
--
-- Atomic because records that were forgotten must not be gone on with: what is there is whole up to its end. A repeat of
-- what is there changes nothing.

local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local to = last and tonumber(string.match(last[1], '^%d+'))
if to then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  if to >= tonumber(ARGV[2]) then return {'ok'} end
  if to + 1 ~= tonumber(ARGV[3]) then return {'gap'} end
end
for i = 4, #ARGV, 2 do redis.call('XADD', KEYS[1], ARGV[i] .. '-0', 'r', ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return {'ok'}
