-- @include work
-- @include functions
-- @include copies
-- @include quota
-- @lazy
-- How a key that nothing wants goes, and what goes with it.

local edges = 0 -- that this script has cut at once

-- Whether the edges of a task are few enough to be cut at once, with all that this script has cut so far.
local function few(h)
  edges = edges + h.deps
  return edges < SLICE
end

-- The payloads of a key on workers go: the index first, then the word to the worker.
function S.drop_replicas(name, h)
  for field, attempt in pairs(h) do
    if sub(field, 1, 2) == 'w:' then
      local worker = sub(field, 3)
      call('HDEL', P .. 'has:' .. worker, name)
      S.evict(worker, name, attempt)
    end
  end
end

-- NAME is no unfinished dependent of D any more. `keep` leaves it a known one. Safe to repeat: membership decides.
local function part(name, d, keep)
  local h = rec(d)
  local parted = call('SREM', P .. 'users:' .. d, name)
  if parted == 0 then
    parted = call('SREM', P .. 'waiters:' .. d, name)
    local waiter = parted == 1 and rec(name)
    if waiter then
      S.bump(name, waiter, 'missing', -1)
    end
  end
  if keep then
    if h then
      call('SADD', P .. 'dependents:' .. d, name)
      if not h.fan then
        S.set(d, h, 'fan', '1')
      end
    end
  elseif parted == 0 then
    call('SREM', P .. 'dependents:' .. d, name)
  end
  if h then
    if parted == 1 then
      S.bump(d, h, 'needed', -1)
    end
    if not wanted(h) then
      S.later('free ' .. d)
    end
  end
end

-- A finished, erred or released task needs its dependencies no more but may need them again.
function S.settle(argument)
  local name, members = S.step('settle', argument, 'deps:')
  local h = rec(name)
  local state = h and word(h.state)
  if state == 'memory' or state == 'erred' or state == 'released' then
    for _, d in ipairs(members) do
      part(name, d, true)
    end
  end
  return 1 + 3 * #members
end

-- A forgotten task, or one whose value is as durable as its record, drops its edges for good. Until the last is cut the
-- record stays (`forgetting` where the task is forgotten), so that the name cannot come again in between.
function S.cut(name)
  local h = rec(name)
  if h and h.state ~= 'forgetting' and S.has_spec(h) then
    return 1 -- the name has come again
  end
  local members = call('SPOP', P .. 'deps:' .. name, SLICE)
  for _, d in ipairs(members) do
    part(name, d, false)
  end
  if #members == SLICE then
    S.later('cut ' .. name)
  elseif h and h.state == 'forgetting' then
    S.remove(RECORD .. name)
    cache[name] = false
    born = born - 1
    if call('HINCRBY', META, 'forgetting', -1) <= 0 then
      call('HDEL', META, 'forgetting')
    end
  elseif h then
    S.unset(name, h, 'deps')
  end
  return 1 + 3 * #members
end

-- A value that is as durable as its record needs its dependencies never again.
function S.part_from_all(name, h)
  if few(h) then
    S.cut(name)
  else
    S.later('cut ' .. name)
  end
end

-- Pins of a container. Its id is `ATTEMPT NAME`: a name that comes again is another container.
function S.pin(id, names)
  local container = match(id, '^%d+ (.*)$')
  for _, name in ipairs(names) do
    local h = rec(name) or recovering and S.placeholder(name)
    if h and h.state ~= 'forgetting' and name ~= container and call('SADD', P .. 'contains:' .. id, name) == 1 then
      call('SADD', P .. 'containers:' .. name, id)
      S.bump(name, h, 'pins', 1)
      if h.state == 'released' then
        S.later('revive ' .. name)
      end
    end
  end
end

-- After a loss of writes a name may be met before whoever has its payload or its run spec has registered anew.
function S.placeholder(name)
  local h = { state = 'released' }
  S.create(name, h)
  call('HSET', RECORD .. name, 'state', 'released')
  call('RPUSH', P .. 'deferred', 'revive ' .. name, 'free ' .. name)
  return h
end

function S.unpin(id)
  local members = call('SPOP', P .. 'contains:' .. id, SLICE)
  for _, name in ipairs(members) do
    call('SREM', P .. 'containers:' .. name, id)
    local h = rec(name)
    if h then
      S.bump(name, h, 'pins', -1)
      S.later('free ' .. name)
    end
  end
  if #members == SLICE then
    S.later('unpin ' .. id)
  end
  return 1 + 3 * #members
end

-- A value goes: its copies, and what it held.
function S.drop_value(name, h)
  if h.tries then
    S.enough(name, h)
  end
  if h.counted then
    S.discount(name, h)
  end
  S.drop_replicas(name, h)
  if h.contains then
    S.later('unpin ' .. h.contains .. ' ' .. name)
  end
end

-- A value goes, and its record stays.
function S.hollow(name, h)
  S.drop_value(name, h)
  local fields = {}
  for field in pairs(h) do
    if sub(field, 1, 2) == 'w:' then
      fields[#fields + 1] = field
    end
  end
  S.unset(name, h, 'contains', unpack(fields))
  S.set(name, h, 'state', 'released')
end

-- What is left of a record while its edges are cut: what counts them.
local KEPT = { state = true, deps = true, missing = true, linking = true }

local function forget(name, h)
  local state = word(h.state)
  if h.fn then
    S.use_function(h.fn, -1)
  end
  if h.class then
    S.use_function(h.class, -1)
  end
  if state == 'queued' then
    S.void(h)
  elseif state == 'processing' then
    S.skip(h)
  end
  if h.meta then
    call('HDEL', P .. 'metadata', name)
  end
  S.drop_value(name, h)
  if h.data == '' then
    S.remove(P .. 'data:' .. name)
  end
  if state == 'erred' and not h.cause then
    S.remove(P .. 'error:' .. name)
  end
  if h.deps and not few(h) then
    local rest = {} -- above all `reviving`, by which a step over its dependencies would run it, and copies that are gone
    for field in pairs(h) do
      if not KEPT[field] then
        rest[#rest + 1] = field
      end
    end
    S.unset(name, h, unpack(rest))
    S.set(name, h, 'state', 'forgetting')
    call('HINCRBY', META, 'forgetting', 1) -- while there are such, who makes names known looks whether they are among them
    S.later('cut ' .. name)
    return
  end
  S.remove(RECORD .. name)
  cache[name] = false
  born = born - 1
  if h.deps then
    S.cut(name)
  end
end

-- Apply the memory rule to one key.
function S.free(name)
  local h = rec(name)
  if not h or wanted(h) or h.state == 'forgetting' then
    return 1
  end
  if recovering then
    call('RPUSH', P .. 'deferred', 'free ' .. name)
    return 1
  end
  if h.fan then
    if call('EXISTS', P .. 'dependents:' .. name) == 1 then
      S.rest(name, h)
      return 3
    end
    S.unset(name, h, 'fan')
  end
  forget(name, h)
  return 2
end

-- Nobody wants the value, but a known task may need the record: what can be computed again is dropped, what runs is stopped.
function S.rest(name, h)
  local state = word(h.state)
  if state == 'memory' then
    local where = S.where(h)
    if not where or h.keep then
      return
    end
    S.hollow(name, h)
  elseif state == 'waiting' or state == 'queued' or state == 'processing' then
    if state == 'queued' then
      S.void(h)
    elseif state == 'processing' then
      S.skip(h)
    end
    S.set(name, h, 'state', 'released')
    S.unset(name, h, 'reviving')
    if h.deps then
      S.later('settle 0 ' .. name)
    end
  end
end

-- One caller's reference goes; the field need not be removed from a record that goes as well.
function S.let_go(name, h, field)
  h[field] = nil
  if h.linking and field == 'refs:' .. h.linking then
    S.abandon('0 ' .. name) -- now: its submitter may come again before the work list is
  end
  if wanted(h) then
    call('HDEL', RECORD .. name, field)
  else
    S.free(name)
    if cache[name] then
      call('HDEL', RECORD .. name, field)
    end
  end
end

-- The server itself holds a value no more: `d` as a version of a dataset, `c` for callers that coordinate by it.
function S.withdraw(record, holder)
  call('SREM', P .. 'holds:' .. holder, record)
  local h, field = rec(record), 'refs:' .. holder
  if h and h[field] then
    S.let_go(record, h, field)
  end
end
