-- @include forget
-- @include seek
-- @lazy
-- How a task ends: in memory, erred, or back to where it came from; and what that means for those that wait.

-- The unfinished dependents of a key that has come: each misses one less.
function S.come(name)
  local h = rec(name)
  if not h or word(h.state) ~= 'memory' then
    return 1
  end
  local members = call('SPOP', P .. 'waiters:' .. name, SLICE)
  if #members == 0 then
    return 1
  end
  S.many('SADD', P .. 'users:' .. name, members)
  for _, dependent in ipairs(members) do
    local hd = rec(dependent)
    if hd and S.bump(dependent, hd, 'missing', -1) <= 0 and hd.state == 'waiting' and not hd.reviving then
      S.ready(dependent, hd, hd.ahead)
    end
  end
  if #members == SLICE then
    S.later('come ' .. name)
  end
  return 1 + 3 * #members
end

-- Nothing that belonged to the run is left on a finished record. (`missing` stays in step with the sets that it counts.)
local function tidy(name, h)
  if h.retries or h.deaths or h.reviving or h.home then
    S.unset(name, h, 'retries', 'deaths', 'reviving', 'home')
  end
end

local UNFINISHED = { waiting = true, queued = true, processing = true }

-- A task that was for one executor changed what that keeps: it never runs again, not even for a value that is lost.
local function once_only(name, h)
  if h.data == '' then
    S.remove(P .. 'data:' .. name)
  end
  S.use_function(h.class, -1)
  S.unset(name, h, 'data', 'class', 'prio')
  if h.deps then
    S.part_from_all(name, h)
  end
end

local function unfire(name, h)
  if h['refs:0'] then
    call('SREM', P .. 'holds:0', name)
    S.let_go(name, h, 'refs:0')
  end
end

-- A value has come: inline (`value` not empty), or as a segment of `worker`. `names` are the keys that it contains.
function S.remember(name, h, attempt, worker, nbytes, kind, value, names)
  local long = h.data == ''
  if value ~= '' then
    local data = S.data_field(name, value)
    if long and data ~= '' then
      S.remove(P .. 'data:' .. name)
    end
    S.set(name, h, 'state', 'memory', 'nbytes', nbytes, 'type', kind, 'data', data)
    if h.class or h.prio or h.ahead then
      if h.class then
        S.use_function(h.class, -1)
      end
      S.unset(name, h, 'class', 'prio', 'ahead')
    end
    if h.deps then
      S.part_from_all(name, h)
    end
    S.unset(name, h, 'copies', 'branching')
  else
    S.set(name, h, 'state', 'memory', 'nbytes', nbytes, 'type', kind, 'attempt', attempt, 'w:' .. worker, attempt)
    call('HSET', P .. 'has:' .. worker, name, attempt)
    if h.copies then
      S.fewer(name, h)
    end
    if h.owner then
      S.count_value(name, h)
    end
    if h.class and S.class(h.class).executor then
      once_only(name, h)
    elseif h.deps then
      S.later('settle 0 ' .. name)
    end
  end
  tidy(name, h)
  if h.lost then
    S.unset(name, h, 'lost')
  end
  if names then
    S.set(name, h, 'contains', attempt)
    S.pin(attempt .. ' ' .. name, names)
  end
  S.tell(name, h)
  if h.needed then
    S.later('come ' .. name)
  end
  unfire(name, h)
end

-- An error has come: `value` is the pickled error, or `cause` names the task it came from.
function S.err(name, h, kind, value, cause)
  if word(h.state or '') == 'queued' then
    S.void(h)
  end
  if cause then
    S.set(name, h, 'state', 'erred', 'type', kind, 'cause', cause)
  else
    S.unset(name, h, 'cause')
    call('SET', P .. 'error:' .. name, value)
    S.set(name, h, 'state', 'erred', 'type', kind)
  end
  tidy(name, h)
  if h.deps then
    S.later('settle 0 ' .. name)
  end
  S.tell(name, h)
  if h.needed then
    S.later('blame ' .. name)
  end
  unfire(name, h)
end

-- The unfinished dependents of an erred key err with it.
function S.blame(name)
  local h = rec(name)
  if not h or h.state ~= 'erred' then
    return 1
  end
  local count = 0
  for _, set in ipairs({ 'waiters:', 'users:' }) do
    local members = call('SPOP', P .. set .. name, SLICE)
    if #members > 0 then
      S.many('SADD', P .. 'dependents:' .. name, members)
      S.set(name, h, 'fan', '1')
      S.bump(name, h, 'needed', -#members)
      for _, dependent in ipairs(members) do
        local hd = rec(dependent)
        if hd and set == 'waiters:' then
          S.bump(dependent, hd, 'missing', -1)
        end
        -- One that is finished or let go has only not been settled yet.
        if hd and UNFINISHED[word(hd.state)] then
          S.err(dependent, hd, h.type, nil, h.cause or name)
        end
      end
    end
    count = count + #members
  end
  if h.needed then
    S.later('blame ' .. name)
  else
    S.later('free ' .. name)
  end
  return 1 + 3 * count
end

-- A task is to run once more.
function S.again(name, h)
  if h.missing then
    S.set(name, h, 'state', 'waiting')
  else
    S.ready(name, h, true)
  end
end

-- The process that ran a task died under it.
function S.died(name, h, reason)
  local deaths = S.bump(name, h, 'deaths', 1)
  if deaths > tonumber(call('HGET', META, 'allowed_failures') or 3) then
    S.err(name, h, 'KilledWorker', format(
      '!KilledWorker\0%s killed the process that ran it %d times; the last time: %s', name, deaths, reason))
  else
    S.again(name, h)
  end
end
