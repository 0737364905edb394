-- @include take
-- @lazy
-- Work for idle executors, and executors for queued work, beyond what one script looks at.
local WINDOW = 256
local sought = {} -- queues into which further executors are to look

-- The first queues, and as many of the others, which come in turn, as ZRANGE answers.
function S.queues_in_turn(count)
  local flat = call('ZRANGE', P .. 'queues', 0, count - 1, 'WITHSCORES')
  local from = count + call('HINCRBY', META, 'looked', count) % (call('ZCARD', P .. 'queues') - count)
  for _, part in ipairs(call('ZRANGE', P .. 'queues', from, from + count - 1, 'WITHSCORES')) do
    flat[#flat + 1] = part
  end
  return flat
end

-- The entry of executor x among the idle ones; one that was not loaded has so many free threads, by default what is known.
local function idle_entry(x, free)
  local idle = S.load_idle()
  for i = 1, #idle do
    if idle[i][1] == x then
      return idle[i]
    end
  end
  local entry = { x, tonumber(free or call('ZSCORE', P .. 'idle', x) or 0) }
  idle[#idle + 1] = entry
  return entry
end

-- Idle executors beyond those that were loaded are to look into a queue.
function S.seek_for(suffix)
  if not sought[suffix] then
    sought[suffix] = true
    S.later('seek 0 ' .. suffix)
  end
end

-- They look into the queues that grew and are not empty.
function S.seek_further()
  for suffix in pairs(rawget(S, 'grown') or {}) do
    if suffix ~= 1 and call('EXISTS', P .. 'queue:' .. suffix) == 1 then
      S.seek_for(suffix)
    end
  end
end

-- As work, `CURSOR`: all idle executors look again, where too many entries were void to find a good one at once, or resources
-- came free. The more queues there are, the fewer executors a script.
function S.serve(cursor)
  unserved = false
  cursor = tonumber(cursor) and cursor or '0'
  local reply = call('ZSCAN', P .. 'idle', cursor, 'COUNT', math.max(16, math.floor(8000 / math.max(1, #S.queues()))))
  for i = 1, #reply[2], 2 do
    S.serve_idle(idle_entry(reply[2][i], reply[2][i + 1]))
  end
  if unserved then
    S.later('serve ' .. cursor)
  elseif reply[1] ~= '0' then
    S.later('serve ' .. reply[1])
  end
  return SLICE
end

-- As work, `CURSOR QUEUE`: idle executors beyond those that were looked at when the queue grew take from it.
function S.seek(argument)
  local cursor, suffix = match(argument, '^(%d+) (.*)$')
  S.flush_queues()
  local reply = call('ZSCAN', P .. 'idle', cursor, 'COUNT', 50)
  local class, host = match(suffix, ':([^@]*)') or '', match(suffix, '@(.*)$')
  unserved = false
  local told = false
  for i = 1, #reply[2], 2 do
    if not S.head(suffix) then
      return 1 + i
    end
    local entry = idle_entry(reply[2][i], reply[2][i + 1])
    if entry[2] > 0 and host and S.host_of(entry[1]) ~= host then
      if not told and S.may_run(entry[1], class) then
        told = true
        S.look_later(entry[1], S.away())
      end
    elseif entry[2] > 0 and S.may_serve(entry[1], suffix) then
      S.serve_idle(entry, suffix)
    end
  end
  if unserved then
    unserved = false
    S.later('seek ' .. argument)
  elseif reply[1] ~= '0' then
    S.later('seek ' .. reply[1] .. ' ' .. suffix)
  end
  return 1 + 2 * #reply[2]
end

-- Executor x found nothing in the window: the other queues are looked through as work.
function S.look_further(x)
  local _, partial = S.queues()
  if partial then
    S.later('look 0 ' .. x)
  end
end

-- `RANK EXECUTOR`: a window of the queues, from that rank on.
function S.look(argument)
  local rank, x = match(argument, '^(%d+) (%d+)$')
  local entry = idle_entry(x)
  unserved = false
  if entry[2] <= 0 then
    return 1 -- busy, or gone; it looks by itself when it is free
  end
  local flat = call('ZRANGE', P .. 'queues', rank, rank + WINDOW - 1, 'WITHSCORES')
  for i = 1, #flat, 2 do
    local suffix = flat[i]
    if S.may_serve(x, suffix) and S.head(suffix) then
      S.serve_idle(entry, suffix)
      if entry[2] <= 0 or unserved then
        break
      end
    end
  end
  if unserved then
    unserved = false
    S.later('look ' .. argument)
  elseif entry[2] > 0 and #flat == 2 * WINDOW then
    S.later('look ' .. int(rank + WINDOW) .. ' ' .. x)
  end
  return SLICE
end
