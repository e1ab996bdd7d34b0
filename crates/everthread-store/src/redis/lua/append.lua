-- Appends the next record of a run that has written before: what nearly every write is. All others are write.lua's.
--
-- KEYS  1 meta  2 log
-- ARGV  1 end of the record   2 count of entries   3 run   4 its fence
--       5 its producer as it must be, '<incarnation> <batch> '   6 as it will be, the same with the next batch
-- Returns '<epoch> <to> <at> <changes> <folded_to>', or nil: nothing has changed, and write.lua says what to make of it
--
-- Atomic for the same reasons as write.lua, and right wherever write.lua is: this takes a write only if each of its checks
-- would pass, and refuses nothing by itself. A stub has no fences, and a batch that was written has moved the producer on.
-- Another primary is a new epoch, so it is looked for here, too.
--
-- It is short because Redis spends most of its time here. Numbers go into texts by `..` where they have less than 14
-- digits: seqs and milliseconds do, microseconds do not.

local call, run, last = redis.call, ARGV[3], ARGV[5]
local own = 'p:' .. run
local m = call('HMGET', KEYS[1], 'epoch', 'n', 'head', 'replid', 'f:' .. run, own, 'folded_to')
local replid, known = m[4], m[6]
if m[5] ~= ARGV[4] or not known or not replid or string.sub(known, 1, #last) ~= last then return false end
if not string.find(call('INFO', 'replication'), 'master_replid:' .. replid, 1, true) then return false end

local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) .. ''
local to = m[3] + ARGV[2] .. ''
local record = '["' .. m[1] .. '",' .. (ARGV[2] == '1' and to or m[3] + 1) .. ',' .. now .. ARGV[1]
call('XADD', KEYS[2], to .. '-0', 'r', record)
call('HSET', KEYS[1], 'head', to, own, ARGV[6] .. to)
call('SPUBLISH', KEYS[2], to .. ' ' .. record)
return m[1] .. ' ' .. to .. ' ' .. now .. ' ' .. m[2] .. ' ' .. (m[7] or '0')
