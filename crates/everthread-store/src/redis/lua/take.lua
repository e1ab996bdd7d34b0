-- Takes items from a pool without waiting: first those that somebody took and did not finish, then new ones.
--
-- KEYS  1 pool
-- ARGV  1 consumer  2 most items  3 visibility in ms
-- Returns {id, payload, deliveries, …}
--
-- Atomic because the group must exist before it is read, and because an item is to have one taker at a time.

local pool, consumer, most = KEYS[1], ARGV[1], tonumber(ARGV[2])
local taken = {}
if most < 1 or redis.call('EXISTS', pool) == 0 then return taken end
if #redis.call('XINFO', 'GROUPS', pool) == 0 then redis.call('XGROUP', 'CREATE', pool, 'workers', '0') end

-- Entries that were deleted while they were pending leave the list by this.
local start = '0-0'
repeat
  local claimed = redis.call('XAUTOCLAIM', pool, 'workers', consumer, ARGV[3], start, 'COUNT', most - #taken / 3)
  start = claimed[1]
  for _, entry in ipairs(claimed[2]) do
    local pending = redis.call('XPENDING', pool, 'workers', entry[1], entry[1], 1)
    taken[#taken + 1] = entry[1]
    taken[#taken + 1] = entry[2][2]
    taken[#taken + 1] = pending[1] and pending[1][4] or 1
  end
until start == '0-0' or #taken / 3 >= most

if #taken / 3 < most then
  local read = redis.call('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', most - #taken / 3, 'STREAMS', pool, '>')
  if read then
    for _, entry in ipairs(read[1][2]) do
      taken[#taken + 1] = entry[1]
      taken[#taken + 1] = entry[2][2]
      taken[#taken + 1] = 1
    end
  end
end
return taken
