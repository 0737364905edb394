-- @include finish
-- @lazy
-- Dependencies of a task that is known already, of which not all were told.

-- Link a task to further dependencies, in order, up to the first that is not known. Returns the name of that one, one that has
-- erred, and those that are to be revived.
function S.further(name, h, deps)
  local unfinished = h.state == 'waiting'
  local linked, unknown, erred, released = 0, nil, nil, {}
  for _, d in ipairs(deps) do
    local hd = rec(d) or recovering and S.placeholder(d)
    if not hd or hd.state == 'forgetting' or d == name then
      unknown = d
      break
    end
    if call('SADD', P .. 'deps:' .. name, d) == 1 then
      linked = linked + 1
      local state = word(hd.state)
      if not unfinished or state == 'erred' then
        call('SADD', P .. 'dependents:' .. d, name)
        S.set(d, hd, 'fan', '1')
        erred = erred or state == 'erred' and d
      else
        call('SADD', P .. (state == 'memory' and 'users:' or 'waiters:') .. d, name)
        S.bump(d, hd, 'needed', 1)
        if state ~= 'memory' then
          S.bump(name, h, 'missing', 1)
        end
        if state == 'released' then
          released[#released + 1] = d
        end
      end
    end
  end
  S.bump(name, h, 'deps', linked)
  return unknown, erred, released
end

-- Whether `deps` leaves out none of the dependencies that a task was told to have.
function S.covers(name, h, deps)
  local before = tonumber(h.deps or 0)
  for k = 1, #deps, CHUNK do
    for _, there in ipairs(call('SMISMEMBER', P .. 'deps:' .. name, unpack(deps, k, math.min(k + CHUNK - 1, #deps)))) do
      before = before - there
    end
  end
  return before <= 0
end

-- Somebody else than who has begun to tell a waiting task, and may never end, tells it wholly: nobody waits for the other.
function S.told(name, h, deps)
  local _, erred, released = S.further(name, h, deps)
  S.unset(name, h, 'linking')
  local ready = S.bump(name, h, 'missing', -1) <= 0
  if erred then
    S.err(name, h, rec(erred).type, nil, rec(erred).cause or erred)
    return
  end
  for _, d in ipairs(released) do
    S.later('revive ' .. d)
  end
  if ready and not h.reviving then
    S.ready(name, h, h.ahead)
  end
end
