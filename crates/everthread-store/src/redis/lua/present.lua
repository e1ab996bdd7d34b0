-- Reads who is present in a session, and keeps it.
--
-- KEYS  1 presence
-- ARGV  1 most of whom something is told   2 how long it is kept, in ms
-- Returns {'told', field, value, …}, or, if there are more, {'many', field, …}
--
-- Atomic because the count decides what is read.

redis.call('PEXPIRE', KEYS[1], ARGV[2])
local answer
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[1]) then
  answer = redis.call('HKEYS', KEYS[1])
  table.insert(answer, 1, 'many')
else
  answer = redis.call('HGETALL', KEYS[1])
  table.insert(answer, 1, 'told')
end
return answer
