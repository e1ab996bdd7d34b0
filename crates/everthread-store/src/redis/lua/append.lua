-- Appends the next record of a run that has written before: what nearly every write is. All others are write.lua's.
--
-- KEYS  1 meta  2 log
-- ARGV  1 end of the record   2 run   3 its fence   4 its producer as it must be, '<incarnation> <batch> '
--       5 as it will be, the same with the next batch   6 count of entries, absent for 1
-- Returns '<epoch> <to> <at> <changes> <folded_to>', or nil: nothing has changed, and write.lua says what to make of it
--
-- Atomic because every number is picked, every check made and every follower woken in one step, as in write.lua; and right
-- wherever that is: this takes a write only if each of its checks would pass, and refuses nothing by itself. A stub has no fences, and a batch that was written has moved the producer on.
-- Another primary is a new epoch, so it is looked for here, too.
--
-- It is short because Redis spends most of its time here: what it costs is mostly calls, texts that are made, and numbers
-- that become texts. `..` makes a text of a number right if it has less than 15 digits, as seqs and milliseconds do.

local call, run, last, count = redis.call, ARGV[2], ARGV[4], ARGV[6]
local own = 'p:' .. run
local m = call('HMGET', KEYS[1], 'epoch', 'n', 'head', 'replid', 'f:' .. run, own, 'folded_to')
local replid, known = m[4], m[6]
if m[5] ~= ARGV[3] or not known or not replid or string.sub(known, 1, #last) ~= last then return false end
if not string.find(call('INFO', 'replication'), 'master_replid:' .. replid, 1, true) then return false end

local time = call('TIME')
local micros = time[2]
local now = #micros == 6 and time[1] .. string.sub(micros, 1, 3) or time[1] * 1000 + math.floor(micros / 1000) .. ''
local from = m[3] + 1 .. ''
local to = count and m[3] + count .. '' or from
local record = '["' .. m[1] .. '",' .. from .. ',' .. now .. ARGV[1]
call('XADD', KEYS[2], to .. '-0', 'r', record)
call('HSET', KEYS[1], 'head', to, own, ARGV[5] .. to)
call('SPUBLISH', KEYS[2], to .. ' ' .. record)
return m[1] .. ' ' .. to .. ' ' .. now .. ' ' .. m[2] .. ' ' .. (m[7] or '0')
