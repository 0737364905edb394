-- @include coordination
-- @lazy
-- Locks and semaphores. lock:NAME is the line: the first of it, as many as the limit, hold the lock. A request may be in
-- several lines at once, which it enters in one script; so no circle of waits can come about. Its STATE says how many of its
-- lines it still has to come forward in: 0 when it holds what it needs.

local function limit_of(name)
  return math.abs(tonumber(call('HGET', P .. 'limits', 'lock ' .. name) or 1)) -- negative: closed, and some still hold it
end

-- Enter lines. Returns how many locks are still missing, -1 if some are and it would not wait.
function S.line_up(token, need, wait, names)
  local free = {}
  for _, name in ipairs(names) do
    if #free < need and call('ZCARD', P .. 'lock:' .. name) < limit_of(name) then
      free[#free + 1] = name
    end
  end
  local missing = need - #free
  if missing > 0 and wait == 0 then
    for _, name in ipairs(names) do
      S.settle_limit('lock', name)
    end
    return -1
  end
  local chosen = missing == 0 and free or names
  local number = int(S.asked())
  for _, name in ipairs(chosen) do
    call('ZADD', P .. 'lock:' .. name, number, ME .. ' ' .. token)
  end
  for _, name in ipairs(missing == 0 and names or {}) do
    S.settle_limit('lock', name)
  end
  S.note(ME, token, 'line', int(missing), chosen)
  return missing
end

-- A request has come forward in one of its lines. One that needs no more leaves those in which it still waits.
local function advance(member)
  local ordinal, token = match(member, '^(%d+) (.*)$')
  local _, state, names = S.ask(ordinal, token)
  local missing = tonumber(state) - 1
  if missing == 0 then
    local held = {}
    for _, name in ipairs(names) do
      if call('ZRANK', P .. 'lock:' .. name, member) < limit_of(name) then
        held[#held + 1] = name
      else
        call('ZREM', P .. 'lock:' .. name, member)
      end
    end
    names = held
    S.hear(ordinal, token)
  end
  S.note(ordinal, token, 'line', int(missing), names)
end

function S.leave_line(ordinal, token, _, names)
  local member = ordinal .. ' ' .. token
  for _, name in ipairs(names) do
    local key, limit = P .. 'lock:' .. name, limit_of(name)
    local rank = call('ZRANK', key, member)
    call('ZREM', key, member)
    if rank and rank < limit then
      local next_one = call('ZRANGE', key, limit - 1, limit - 1)[1]
      if next_one then
        advance(next_one)
      end
    end
    S.settle_limit('lock', name)
  end
end
