-- One page of a tenant's sessions, most recently active first; of one time, the greatest id first, as Redis keeps them.
--
-- KEYS  1 index
-- ARGV  1 most sessions  2 time of the last one seen, or ''  3 its id
-- Returns {session, score, …}
--
-- Atomic because a session that moves to the front between two reads of one page would be missed or listed twice.

local index, most = KEYS[1], tonumber(ARGV[1])
local page = {}
if most < 1 then return page end
if ARGV[2] == '' then return redis.call('ZRANGE', index, 0, most - 1, 'REV', 'WITHSCORES') end

-- The last one seen is mostly still where it was: then the page begins behind it.
local score = redis.call('ZSCORE', index, ARGV[3])
if score and tonumber(score) == tonumber(ARGV[2]) then
  local rank = redis.call('ZREVRANK', index, ARGV[3])
  return redis.call('ZRANGE', index, rank + 1, rank + most, 'REV', 'WITHSCORES')
end

-- It has moved, so its place must be found. Lua's `<` follows the server's locale; Redis orders by bytes.
local function before(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end
local skip, chunk = 0, math.max(most, 100)
while true do
  local some = redis.call('ZRANGE', index, ARGV[2], '-inf', 'BYSCORE', 'REV', 'LIMIT', skip, chunk, 'WITHSCORES')
  for i = 1, #some, 2 do
    if tonumber(some[i + 1]) < tonumber(ARGV[2]) or before(some[i], ARGV[3]) then
      page[#page + 1] = some[i]
      page[#page + 1] = some[i + 1]
      if #page / 2 == most then return page end
    end
  end
  if #some < 2 * chunk then return page end
  skip = skip + chunk
end
