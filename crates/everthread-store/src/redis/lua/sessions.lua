-- One page of a tenant's sessions, most recently active first, then by id.
--
-- KEYS  1 index
-- ARGV  1 most sessions  2 time of the last one seen, or ''  3 its id
-- Returns {session, score, …}
--
-- Atomic because a session that moves to the front between two reads of one page would be listed twice. Members of
-- one score come in the order of their ids from Redis forwards, so each score that the page touches is read forwards.

local index, most = KEYS[1], tonumber(ARGV[1])
local page = {}
local function take(score, after)
  for _, member in ipairs(redis.call('ZRANGE', index, score, score, 'BYSCORE')) do
    if #page / 2 >= most then return end
    if not after or member > after then
      page[#page + 1] = member
      page[#page + 1] = score
    end
  end
end

local below = '+inf'
if ARGV[2] ~= '' then
  take(ARGV[2], ARGV[3])
  below = '(' .. ARGV[2]
end
while #page / 2 < most do
  local next_ = redis.call('ZRANGE', index, below, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, 1, 'WITHSCORES')
  if #next_ == 0 then break end
  take(next_[2])
  below = '(' .. next_[2]
end
return page
