-- @include finish
-- @lazy
-- How a lost or dropped value is computed again, from its run spec and, where those went too, from its dependencies'.

-- How often the last copy of a value is computed again because its file was damaged or gone.
local MOST_SPOILT = 3

-- What a user can do about a value that nothing can compute again.
local NOTHING = 'nothing can compute it again: scatter or publish it again, or have copies kept (replicas=2)'

-- The value of a record is lost for good.
local function lost(name, h, what, why)
  S.err(name, h, 'DataLost', format('!DataLost\0the data of %s is lost: its last copy went%s, and %s', name, what, why))
end

-- Run a record without a value again, or say that its data is lost. What erred because of it is run again with it.
local function rerun(name, h, verb)
  if not h.data then
    if recovering then
      call('RPUSH', P .. 'deferred', verb .. name)
    else
      lost(name, h, h.lost and ' with ' .. h.lost or '', NOTHING)
    end
    return 2
  end
  if word(h.state) == 'erred' then
    if h.fan then
      S.later('rouse 0 ' .. (h.cause or name) .. '\n' .. name)
    end
    if not h.cause then
      call('UNLINK', P .. 'error:' .. name)
      S.unset(name, h, 'spoilt')
    end
  end
  S.unset(name, h, 'cause', 'nbytes', 'type', 'attempt')
  -- The mark keeps the task from starting before every dependency was looked at; its number voids the steps of earlier looks.
  local epoch = int(call('HINCRBY', META, 'revivals', 1))
  S.set(name, h, 'state', 'waiting', 'reviving', epoch)
  S.tell(name, h)
  if h.deps then
    S.later('attach 0 ' .. epoch .. ' ' .. name)
  else
    S.attached(name, h)
  end
  return 3
end

-- A released record is wanted.
function S.revive(name)
  local h = rec(name)
  if not h or h.state ~= 'released' or not wanted(h) then
    return 1
  end
  return rerun(name, h, 'revive ')
end

-- An erred record is to be run again.
function S.retry(name)
  local h = rec(name)
  if not h or h.state ~= 'erred' or not wanted(h) then
    return 1
  end
  return rerun(name, h, 'retry ')
end

-- `CURSOR ROOT\nNAME`: what erred with NAME for the error of ROOT, which is being run again, cannot stay so.
function S.rouse(argument)
  local cursor, root, name = match(argument, '^(%d+) ([^\n]*)\n(.*)$')
  local reply = call('SSCAN', P .. 'dependents:' .. name, cursor, 'COUNT', SLICE)
  if reply[1] ~= '0' then
    S.later('rouse ' .. reply[1] .. ' ' .. root .. '\n' .. name)
  end
  for _, dependent in ipairs(reply[2]) do
    local h = rec(dependent)
    if h and h.state == 'erred' and h.cause == root then
      if wanted(h) then
        S.later('retry ' .. dependent)
      else
        if h.fan then
          S.later('rouse 0 ' .. root .. '\n' .. dependent)
        end
        S.unset(dependent, h, 'cause', 'type')
        S.set(dependent, h, 'state', 'released')
      end
    end
  end
  return 1 + 3 * #reply[2]
end

function S.attached(name, h)
  S.unset(name, h, 'reviving')
  if not h.missing then
    S.ready(name, h, true)
  end
end

-- `CURSOR EPOCH NAME`: one step over the dependencies of a task that is needed again. Each has the task in exactly one of its
-- sets, so a step may be repeated.
function S.attach(argument)
  local cursor, epoch, name = match(argument, '^(%d+) (%d+) (.*)$')
  local h = rec(name)
  if not h or h.reviving ~= epoch then
    return 1
  end
  local reply = call('SSCAN', P .. 'deps:' .. name, cursor, 'COUNT', SLICE)
  for _, d in ipairs(reply[2]) do
    local hd = rec(d)
    if not hd or hd.state == 'forgetting' then
      S.err(name, h, 'DataLost', format(
        '!DataLost\0%s cannot be computed again: its dependency %s is not known any more', name, d))
      return 2
    end
    local state = word(hd.state)
    local there = state == 'memory'
    if call('SMOVE', P .. 'dependents:' .. d, P .. (there and 'users:' or 'waiters:') .. d, name) == 1 then
      S.bump(d, hd, 'needed', 1)
      if not there then
        S.bump(name, h, 'missing', 1)
      end
    end
    if state == 'released' then
      S.later('revive ' .. d)
    elseif state == 'erred' then
      S.later('retry ' .. d)
    end
  end
  if reply[1] ~= '0' then
    S.later('attach ' .. reply[1] .. ' ' .. epoch .. ' ' .. name)
  else
    S.attached(name, h)
  end
  return 1 + 4 * #reply[2]
end

-- `HOW NAME`: a task does not run whose submitter let go (or went) before it had told all dependencies; who has it as well may
-- submit it again (`untold`). HOW: 1 always, 0 if he has really let go, above: the same, behind so many levels of other work.
function S.abandon(argument)
  local always, name = match(argument, '^(%d+) (.*)$')
  local hops = tonumber(always)
  if hops > 1 then
    local more = first <= last or call('EXISTS', P .. 'work') == 1
    S.later('abandon ' .. (more and hops > 2 and int(hops - 1) or 0) .. ' ' .. name)
    return 1
  end
  local h = rec(name)
  if not h or not h.linking or h.state == 'forgetting' or always == '0' and h['refs:' .. h.linking] then
    return 1
  end
  S.unset(name, h, 'linking')
  S.bump(name, h, 'missing', -1)
  if S.has_spec(h) then -- it would lack arguments
    if h.data == '' then
      S.remove(P .. 'data:' .. name)
    end
    S.unset(name, h, 'data')
  end
  local state = word(h.state)
  if h.untold then
    S.tell(name, h) -- another is to try
  elseif state == 'waiting' or state == 'released' then
    S.set(name, h, 'untold', '1')
    S.err(name, h, 'DataLost', format(
      '!DataLost\0the task %s cannot run: who submitted it went before all of its dependencies were known', name))
  end
  return 3
end

-- One copy of a value is gone. When it was the last, the value is lost. `why`: what its worker found wrong with the file, which
-- may happen to what is computed again, too; not without end.
function S.lose(name, h, worker, what, why)
  S.unset(name, h, 'w:' .. worker)
  call('HDEL', P .. 'has:' .. worker, name)
  if word(h.state) ~= 'memory' or S.where(h) then
    if h.copies or h.tries then
      S.fewer(name, h)
    end
    return
  end
  if h.tries then
    S.enough(name, h)
  end
  if h.counted then
    S.discount(name, h)
  end
  local contained = h.contains
  S.unset(name, h, 'contains')
  S.set(name, h, 'state', 'released', 'lost', sub(what, 1, COMPACT))
  if h.needed then
    S.later('unready ' .. name)
  end
  local spoilt = why and S.bump(name, h, 'spoilt', 1) or 0
  if not wanted(h) then
    S.later('free ' .. name)
  elseif why and h.data and spoilt > MOST_SPOILT then
    lost(name, h, format(' with %s (%s)', what, why), format('that for the %dth time: it is not computed again', spoilt))
  elseif why and not h.data and not recovering then
    lost(name, h, format(' with %s (%s)', what, why), NOTHING)
  else
    S.later('revive ' .. name)
  end
  if contained then
    S.later('unpin_late 64 ' .. contained .. ' ' .. name)
  end
end

-- `HOPS ID`: pins of a lost container go behind what revives it, level by level, since that may need what was pinned.
function S.unpin_late(argument)
  local hops, id = match(argument, '^(%d+) (.*)$')
  if hops ~= '0' and (first <= last or call('EXISTS', P .. 'work') == 1) then
    S.later('unpin_late ' .. int(hops - 1) .. ' ' .. id)
    return 1
  end
  return S.unpin(id)
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
        S.void(hd)
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
