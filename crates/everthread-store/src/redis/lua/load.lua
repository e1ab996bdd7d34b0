-- A session as the core needs it: all of its meta, which has the producers of the runs that have a fence, and the time.
--
-- KEYS  1 meta
-- Returns {} if there is no session, else {now in ms, {field, value, …}}
--
-- Atomic because a decision may rely on state, fences and producers being of one moment.

local meta = redis.call('HGETALL', KEYS[1])
if #meta == 0 then return {} end
local time = redis.call('TIME')
return {string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), meta}
