-- Put before scripts that move the version of a session that exists; write.lua does the same for itself.
--
-- KEYS  those of the script that it stands before
--
-- Atomic because it is part of that script.
--
-- Begins an epoch if another primary than the one that wrote last answers, or that one has started anew: a tail that was
-- acknowledged may be gone, with decisions in it. The version must not be moved within the epoch then: a decision that was
-- made on what is lost would find the version that it expects.
-- Returns the epoch that is in force, and whether it is new.

local function epoch_in_force(meta, epoch, head, most)
  local function text(number) return string.format('%.0f', number) end
  local primary = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
  if redis.call('HGET', meta, 'replid') == primary then return epoch, false end
  local time = redis.call('TIME')
  epoch = text(math.max(epoch + 1, time[1] * 1000000 + time[2]))
  local since, known = text(head + 1), {}
  for pair in string.gmatch(redis.call('HGET', meta, 'epochs') or '', '%S+') do known[#known + 1] = pair end
  known[#known + 1] = epoch .. ':' .. since
  while #known > tonumber(most) do table.remove(known, 1) end
  redis.call('HSET', meta, 'epoch', epoch, 'since', since, 'epochs', table.concat(known, ' '), 'replid', primary)
  return epoch, true
end

