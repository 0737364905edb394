-- @include finish
-- @lazy
-- How a lost or dropped value is computed again, from its run spec and, where those went too, from its dependencies'.

-- A wanted record without a value: run it again, or say that its data is lost.
function S.revive(name)
  local h = rec(name)
  local state = h and word(h.state)
  if not h or not (state == 'released' or state == 'erred') or not wanted(h) then
    return 1
  end
  if not h.data then
    if recovering then
      call('RPUSH', P .. 'deferred', 'revive ' .. name)
    else
      S.err(name, h, 'DataLost', format(
        '!DataLost\0the data of %s is lost: its last copy went%s, and nothing can compute it again', name,
        h.lost and ' with ' .. h.lost or ''))
    end
    return 2
  end
  if state == 'erred' and not h.cause then
    S.remove(P .. 'error:' .. name)
  end
  S.unset(name, h, 'cause', 'nbytes', 'type', 'attempt')
  -- The mark keeps the task from starting before every dependency was looked at.
  S.set(name, h, 'state', 'waiting', 'reviving', '1')
  S.tell(name, h)
  if h.deps then
    S.later('attach 0 ' .. name)
  else
    S.attached(name, h)
  end
  return 2
end

function S.attached(name, h)
  S.unset(name, h, 'reviving')
  if not h.missing then
    S.ready(name, h, true)
  end
end

-- One step over the dependencies of a task that is needed again. Membership decides, so a step may be repeated.
function S.attach(argument)
  local name, members, ended = S.step('attach', argument, 'deps:')
  local h = rec(name)
  if not h or not h.reviving then
    return 1
  end
  for _, d in ipairs(members) do
    local hd = rec(d)
    if not hd then
      S.err(name, h, 'DataLost', format(
        '!DataLost\0%s cannot be computed again: its dependency %s is not known any more', name, d))
      return 2
    end
    local there = word(hd.state) == 'memory'
    if call('SADD', P .. (there and 'users:' or 'waiters:') .. d, name) == 1 then
      call('SREM', P .. 'dependents:' .. d, name)
      S.bump(d, hd, 'needed', 1)
      if not there then
        S.bump(name, h, 'missing', 1)
        S.later('revive ' .. d)
      end
    end
  end
  if ended then
    S.attached(name, h)
  end
  return 1 + 4 * #members
end

-- One copy of a value is gone. When it was the last, the value is lost.
function S.lose(name, h, worker, what)
  S.unset(name, h, 'w:' .. worker)
  call('HDEL', P .. 'has:' .. worker, name)
  if word(h.state) ~= 'memory' or S.where(h) then
    return
  end
  if h.contains then
    S.later('unpin ' .. h.contains .. ' ' .. name)
    S.unset(name, h, 'contains')
  end
  S.set(name, h, 'state', 'released', 'lost', sub(what, 1, COMPACT))
  if h.needed then
    S.later('unready ' .. name)
  end
  if wanted(h) then
    S.later('revive ' .. name)
  else
    S.later('free ' .. name)
  end
end

-- The unfinished dependents of a lost key miss it again.
function S.unready(name)
  local h = rec(name)
  if not h or word(h.state) == 'memory' then
    return 1
  end
  local members = call('SPOP', P .. 'users:' .. name, SLICE)
  if #members == 0 then
    return 1
  end
  S.many('SADD', P .. 'waiters:' .. name, members)
  for _, dependent in ipairs(members) do
    local hd = rec(dependent)
    if hd then
      S.bump(dependent, hd, 'missing', 1)
      if word(hd.state) == 'queued' then
        S.set(dependent, hd, 'state', 'waiting')
      end
    end
  end
  if #members == SLICE then
    S.later('unready ' .. name)
  end
  if h.state == 'erred' then
    S.later('blame ' .. name)
  end
  return 1 + 3 * #members
end
