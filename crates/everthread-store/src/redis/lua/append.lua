-- Appends the next records of runs that have written before, each in a session of its own or not: what nearly every write
-- is. All others are write.lua's.
--
-- For each of them
-- KEYS  1 meta  2 log
-- ARGV  1 end of the record   2 run   3 its fence   4 its producer as it must be, '<incarnation> <batch> '
--       5 as it will be, the same with the next batch   6 count of entries
-- Returns for each '<epoch> <to> <at> <changes> <folded_to>', or nil: nothing has changed, and write.lua says what to make of it
--
-- Atomic because every number is picked, every check made and every follower woken in one step, as in write.lua; and right
-- wherever that is: this takes a write only if each of its checks would pass, and refuses nothing by itself. A stub has no fences, and a batch that was written has moved the producer on.
-- Another primary is a new epoch, so it is looked for here, too.
--
-- It is short because Redis spends most of its time here: what it costs is mostly calls, texts that are made, and numbers
-- that become texts. `..` makes a text of a number right if it has less than 15 digits, as seqs and milliseconds do.

local call = redis.call
local replication, time = call('INFO', 'replication'), call('TIME')
local micros = time[2]
local now = #micros == 6 and time[1] .. string.sub(micros, 1, 3) or time[1] * 1000 + math.floor(micros / 1000) .. ''
-- Of this primary, once one of them was found to be.
local own_replid

local function append(meta, log, before)
  local run, last, count = ARGV[before + 2], ARGV[before + 4], ARGV[before + 6]
  local own = 'p:' .. run
  local m = call('HMGET', meta, 'epoch', 'n', 'head', 'replid', 'f:' .. run, own, 'folded_to')
  local replid, known = m[4], m[6]
  if m[5] ~= ARGV[before + 3] or not known or not replid or string.sub(known, 1, #last) ~= last then return false end
  if replid ~= own_replid then
    if not string.find(replication, 'master_replid:' .. replid, 1, true) then return false end
    own_replid = replid
  end

  local from = m[3] + 1 .. ''
  local to = count == '1' and from or m[3] + count .. ''
  local record = '["' .. m[1] .. '",' .. from .. ',' .. now .. ARGV[before + 1]
  call('XADD', log, to .. '-0', 'r', record)
  call('HSET', meta, 'head', to, own, ARGV[before + 5] .. to)
  call('SPUBLISH', log, to .. ' ' .. record)
  return m[1] .. ' ' .. to .. ' ' .. now .. ' ' .. m[2] .. ' ' .. (m[7] or '0')
end

local answers = {}
for n = 1, #KEYS / 2 do
  -- What is wrong with one session is not the others' fault, and write.lua will say it.
  local is_well, answer = pcall(append, KEYS[2 * n - 1], KEYS[2 * n], 6 * n - 6)
  answers[n] = is_well and answer
end
return answers
