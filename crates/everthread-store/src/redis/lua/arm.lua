-- Notes when a session is due: at the given time, or earlier if it was due earlier.
--
-- KEYS  1 deadlines
-- ARGV  1 session  2 due in ms
-- Returns nothing
--
-- Atomic because it may take a claim out of force. The score of a claim ends in .5; arming a claimed session makes it
-- a whole number again, so that the claim's end cannot remove a deadline that it has not seen. The session then fires
-- no later than the claim would have run out, which is harmless: whoever takes it reads when it is really due.

local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
local at = tonumber(ARGV[2])
if score then at = math.min(at, math.floor(tonumber(score))) end
redis.call('ZADD', KEYS[1], string.format('%.0f', at), ARGV[1])
