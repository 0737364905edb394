-- @include recover
-- @lazy
-- @include take
-- @include locks
-- @include queueing
-- @include topics
-- How callers go: what they held, ran and stored.

-- The sum of a caller's counts; a numbered script keeps its own caller's until it is done.
function S.count(ordinal, by)
  if S.own_sum then
    by = S.own_sum(ordinal, by)
  end
  if by ~= 0 then
    call('HINCRBY', P .. 'caller:' .. ordinal, 'sum', by)
  end
end

-- A slice of the names that a caller holds, taken from its index and from the one before it registered anew.
function S.held(ordinal)
  local names = call('SPOP', P .. 'holds:' .. ordinal, SLICE)
  if #names < SLICE then
    for _, name in ipairs(call('SPOP', P .. 'stale:' .. ordinal, SLICE - #names)) do
      names[#names + 1] = name
    end
  end
  return names
end

-- Release a slice of what a caller holds; the record of one that has gone follows with the last slice.
function S.drop(ordinal)
  local names = S.held(ordinal)
  local field = 'refs:' .. ordinal
  for _, name in ipairs(names) do
    local h = rec(name)
    if h and h[field] then
      S.let_go(name, h, field)
    end
  end
  local hashes = call('SPOP', P .. 'functions:' .. ordinal, SLICE)
  for _, hash in ipairs(hashes) do
    S.use_function(hash, -1)
  end
  if #names == SLICE or #hashes == SLICE then
    S.later('drop ' .. ordinal)
  elseif call('EXISTS', P .. 'asks:' .. ordinal) == 1 and call('HGET', P .. 'caller:' .. ordinal, 'inc') == '' then
    S.later('drop ' .. ordinal) -- behind `quit`
    return SLICE
  elseif call('HGET', P .. 'caller:' .. ordinal, 'inc') == '' then
    S.remove(P .. 'caller:' .. ordinal)
    S.remove(P .. 'inbox:' .. ordinal)
    S.remove(P .. 'answers:' .. ordinal)
  end
  return 1 + 3 * #names + #hashes
end

-- Mark a caller as gone: nothing it sends is accepted from now on.
local function strike(kind, ordinal)
  call('HDEL', P .. kind, ordinal)
  if kind == 'executors' then
    S.struck(ordinal)
  end
  call('ZREM', P .. 'leases', ordinal)
  call('HSET', P .. 'caller:' .. ordinal, 'inc', '')
  local c = S.caller(ordinal)
  if c then
    c.inc = ''
  end
  if call('EXISTS', P .. 'asks:' .. ordinal) == 1 then
    S.later('quit 0 ' .. ordinal .. ' -')
  end
  for _, suffix in ipairs(call('ZRANGE', P .. 'queues', 0, 255)) do
    S.later('sift ' .. suffix)
  end
end

function S.gone_client(ordinal)
  local name = call('HGET', P .. 'caller:' .. ordinal, 'name')
  if name and call('HGET', P .. 'named', name) == ordinal then
    call('HDEL', P .. 'named', name)
  end
  strike('clients', ordinal)
  S.later('drop ' .. ordinal)
end

-- What an executor ran goes to others.
local function leave(x, reason, running)
  local e = S.caller(x)
  local batches = call('HGETALL', P .. 'batches:' .. x)
  call('UNLINK', P .. 'batches:' .. x)
  for i = 1, #batches, 2 do
    S.unclaim(x, batches[i])
    local attempt = tonumber(batches[i])
    for name in string.gmatch(batches[i + 1], '[^\n]+') do
      local text = int(attempt)
      local h = rec(name)
      if h and h.state == 'processing e' .. x .. '.' .. text then
        if running[text] then
          S.died(name, h, reason)
        else
          S.again(name, h)
        end
      end
      attempt = attempt + 1
    end
  end
  if e and e.worker then
    call('SREM', P .. 'executors:' .. e.worker, x)
  end
  if call('EXISTS', P .. 'queues') == 1 then
    S.later('serve -') -- the resources that it had are free
  end
  S.later('drop ' .. x)
end

-- Give up an executor. `running` names, as text keys, the attempts that a death is blamed on.
function S.gone_executor(x, reason, running)
  strike('executors', x)
  S.not_idle(x)
  leave(x, reason, running)
end

-- As work, `ORDINAL`: what an executor ran goes to others, once the copies that went with its worker are known to be gone.
function S.leave(x)
  leave(x, '', {})
  return SLICE
end

-- Strike the executors of a worker, all before anything that one of them had is given to others. Returns them.
local function strike_executors(w)
  local executors = call('SMEMBERS', P .. 'executors:' .. w)
  for _, x in ipairs(executors) do
    strike('executors', x)
    S.not_idle(x)
  end
  return executors
end

-- Give up the executors of a worker ahead of it.
function S.gone_executors(w)
  for _, x in ipairs(strike_executors(w)) do
    S.later('leave ' .. x)
  end
end

-- With whom a copy went, in the words of `DataLost` and of the field `lost`.
function S.went_with(w, reason)
  local record = S.caller(w)
  local who = record and record.name and 'worker ' .. record.name or 'a worker that is gone, caller:' .. w
  return sub(reason and format('%s (%s)', who, reason) or who, 1, COMPACT)
end

-- Give up a worker: its executors, then the copies it had.
function S.gone_worker(w, reason)
  strike_executors(w)
  strike('workers', w)
  call('HDEL', P .. 'hosts', w)
  call('HSET', P .. 'caller:' .. w, 'lost', S.went_with(w, reason))
  S.later('strip 0 ' .. w)
  if call('EXISTS', P .. 'short') == 1 then
    S.later('look_anew 0 ' .. w)
  end
  S.publish('all', { 'w', w })
end

-- `CURSOR ORDINAL`: a slice of the copies that went with a worker. It goes on from the cursor: a table that was emptied from
-- its front has long stretches without anything.
function S.strip(argument)
  local cursor, w = match(argument, '^(%d+) (%d+)$')
  local reply = call('HSCAN', P .. 'has:' .. w, cursor, 'COUNT', SLICE)
  local flat = reply[2]
  local what = call('HGET', P .. 'caller:' .. w, 'lost') or ''
  for i = 1, #flat, 2 do
    local h = rec(flat[i])
    if h and h['w:' .. w] == flat[i + 1] then
      S.lose(flat[i], h, w, what)
    else
      call('HDEL', P .. 'has:' .. w, flat[i])
    end
  end
  if call('EXISTS', P .. 'has:' .. w) == 1 then
    S.later('strip ' .. reply[1] .. ' ' .. w)
  else
    for _, x in ipairs(call('SMEMBERS', P .. 'executors:' .. w)) do
      S.later('leave ' .. x)
    end
    S.later('drop ' .. w)
  end
  return 1 + 2 * #flat
end

-- What the index from before a registration names, and the caller has not counted again.
function S.stale(ordinal)
  local names = call('SPOP', P .. 'stale:' .. ordinal, SLICE)
  local field = 'refs:' .. ordinal
  for _, name in ipairs(names) do
    if call('SISMEMBER', P .. 'holds:' .. ordinal, name) == 0 then
      local h = rec(name)
      if h and h[field] then
        S.count(ordinal, -h[field])
        S.let_go(name, h, field)
      end
    end
  end
  if #names == SLICE then
    S.later('stale ' .. ordinal)
  end
  return 1 + 3 * #names
end
