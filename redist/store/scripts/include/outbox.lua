-- @include parts
-- @include publish
-- @include fields
-- @lazy
-- What the script tells others: states to clients, payloads to drop to workers, void attempts to executors. One message a
-- receiver, sent at the end. States come with the number of the message and that of the receiver's last call that was
-- applied, this one too: so it knows whether they are of a life of the key that it has ended since.
local pushes, evictions, skips = {}, {}, {}

-- How a state travels: state, attempt, nbytes, type, where, value. Values above `limit` bytes are left out. The attempt of an
-- erred task is 1 where it is to be submitted again by who can.
function S.describe(name, h, limit, error_limit)
  local state, value = word(h.state), ''
  if state == 'memory' then
    local where = S.where(h)
    if not where and tonumber(h.nbytes) <= limit then
      value = S.read_data(name, h) or ''
    end
    return state, h.attempt or '0', h.nbytes, h.type or '', where or '', value
  elseif state == 'erred' then
    local cause = h.cause or name
    value = call('GET', P .. 'error:' .. cause) or '!RedistError\0the error of this task is not known any more'
    if #value > error_limit then
      value = ''
    end
    return state, h.untold or '0', '0', h.type or '', h.cause or '', value
  end
  return state, match(h.state, '%.(%d+)$') or '0', h.nbytes or '0', h.type or '', '', ''
end

function S.push(ordinal, name, state, attempt, nbytes, kind, where, value)
  local m = pushes[ordinal]
  if not m then
    m = { 's', 0, 0 }
    pushes[ordinal] = m
  end
  local n = #m
  m[n + 1], m[n + 2], m[n + 3], m[n + 4], m[n + 5], m[n + 6], m[n + 7] = name, state, attempt, nbytes, kind, where, value
end

function S.tell_one(ordinal, name, h)
  S.push(ordinal, name, S.describe(name, h, PUSH_LIMIT, ERROR_LIMIT))
end

-- Tell every caller that holds a reference how the key stands now.
function S.tell(name, h)
  local state, attempt, nbytes, kind, where, value
  for field in pairs(h) do
    local ordinal = match(field, '^refs:([1-9]%d*)$')
    if ordinal then
      if not state then
        state, attempt, nbytes, kind, where, value = S.describe(name, h, PUSH_LIMIT, ERROR_LIMIT)
      end
      S.push(ordinal, name, state, attempt, nbytes, kind, where, value)
    end
  end
end

function S.tell_cancelled(ordinal, name, reason)
  S.push(ordinal, name, 'cancelled', '0', '0', '', '', reason)
end

function S.evict(worker, name, attempt)
  local m = evictions[worker]
  if not m then
    m = {}
    evictions[worker] = m
  end
  m[#m + 1] = name
  m[#m + 1] = attempt
end

-- Nobody wants what is being run: an executor that has not started it need not.
function S.skip(h)
  local x, attempt = match(h.state, '^processing e(%d+)%.(%d+)$')
  if x then
    skips[x] = skips[x] or { 'x' }
    table.insert(skips[x], attempt)
  end
end

closers[#closers + 1] = function()
  for ordinal, m in pairs(pushes) do
    local caller = P .. 'caller:' .. ordinal
    m[2] = call('HINCRBY', caller, 'pushed', 1)
    m[3] = ordinal == rawget(S, 'me') and S.n or call('HGET', caller, 'n') or 0
    S.publish('to:' .. ordinal, m)
  end
  for worker, m in pairs(evictions) do
    S.publish('evict:' .. worker, m)
  end
  for x, m in pairs(skips) do
    S.publish('to:' .. x, m)
  end
end
