-- A session as the core needs it: all of its meta, the producers of the runs that have a fence, and the time.
--
-- KEYS  1 meta  2 producers
-- Returns {} if there is no session, else {now in ms, {field, value, …}, {run, producer record, …}}
--
-- Atomic because a decision may rely on state, fences and producers being of one moment.

local meta = redis.call('HGETALL', KEYS[1])
if #meta == 0 then return {} end
local producers = {}
for i = 1, #meta, 2 do
  local run = string.match(meta[i], '^f:(.*)$')
  local known = run and redis.call('HGET', KEYS[2], 'run:' .. run)
  if known then
    producers[#producers + 1] = run
    -- Without the answer, which may be long.
    producers[#producers + 1] = string.match(known, '^%d+ %d+')
  end
end
local time = redis.call('TIME')
return {string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), meta, producers}
