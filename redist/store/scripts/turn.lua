-- @include lane
-- @include freeing
-- @include callers
-- @include take
-- @include clock
-- An executor hands in what finished and takes what is next.
-- A result of an attempt that its key no longer names is discarded, and its payload dropped.
-- KEYS[1] META
-- ARGV[1] header, capacity, want, quick functions and their hashes, finished batches and their numbers, results; then per
--   result: name, attempt, status, nbytes, type, value, contained keys and their names
-- Reply OK more, then per task: batch, attempt, name, function, spec, dependencies, and per dependency: name, where, value
local capacity, want = a[BODY], a[BODY + 1]
if repeated then
  local list = { 'REPEAT', 0 }
  S.assigned(ME, list)
  return list
end
local list = { 'OK', 0 }
queue_only = true
local worker = lane[4]
local paused, claims = lane[5], tonumber(lane[6] or 0) > 0
local i = BODY + 2
local quick = {}
for k = i + 1, i + a[i] do
  quick[a[k]] = true
end
i = i + 1 + a[i]

-- Copies of dependencies that could not be read: `NAME\nWORKER.ATTEMPT\n...`
local function report_missing(value)
  for name, w, attempt in string.gmatch(value, '([^\n]+)\n(%d+)%.(%d+)') do
    local h = rec(name)
    if h and h['w:' .. w] == attempt then
      S.lose(name, h, w, 'worker ' .. w .. ' (the copy could not be read)')
    end
  end
end

local function hand_in(name, h, attempt, status, nbytes, kind, value, names)
  if status == 'memory' then
    S.remember(name, h, attempt, worker, int(nbytes), kind, value, names)
  elseif status == 'erred' then
    local retries = tonumber(h.retries or 0)
    if retries > 0 then
      S.bump(name, h, 'retries', -1)
      S.again(name, h)
    else
      S.err(name, h, kind, value)
    end
  elseif status == 'missing' then
    report_missing(value)
    S.drain(SLICE)
    if h.state == 'processing e' .. ME .. '.' .. attempt then
      S.again(name, h)
    end
  else
    S.again(name, h)
  end
end

-- The hot path: a short inline value of a task without dependencies, options or dependents, told to those who refer to it.
-- Returns false for anything else.
local prefix = 'processing e' .. ME .. '.'
local over = {} -- tasks so finished, by function
local holder_of = {} -- refs:7 -> 7, read once; false for holders that are no callers
need('outbox')
local function hand_in_brief(name, attempt, nbytes, kind, value)
  if cache[name] ~= nil or #value > COMPACT then
    return false
  end
  local key = RECORD .. name
  local flat = call('HGETALL', key)
  local fn, holders = nil, {}
  for k = 1, #flat, 2 do
    local f = flat[k]
    if f == 'state' then
      if flat[k + 1] ~= prefix .. attempt then
        return false
      end
    elseif f == 'fn' then
      fn = flat[k + 1]
    elseif f == 'data' then
      if flat[k + 1] == '' then
        return false
      end
    else
      local holder = holder_of[f]
      if holder == nil then
        holder = match(f, '^refs:([1-9]%d*)$') or false
        holder_of[f] = holder
      end
      if not holder then
        return false
      end
      holders[#holders + 1] = holder
    end
  end
  if not fn then
    return false
  end
  call('HSET', key, 'state', 'memory', 'nbytes', nbytes, 'type', kind, 'data', value)
  over[fn] = (over[fn] or 0) + 1
  for k = 1, #holders do
    S.push(holders[k], name, 'memory', '0', nbytes, kind, '', value)
  end
  return true
end

local finished = i
i = i + 1 + a[i]
local results = a[i]
i = i + 1
for k = finished + 1, finished + a[finished] do
  if claims then
    S.unclaim(ME, a[k])
  end
  call('HDEL', P .. 'batches:' .. ME, a[k])
end
for _ = 1, results do
  local name, attempt, status, nbytes, kind, value, n = a[i], a[i + 1], a[i + 2], a[i + 3], a[i + 4], a[i + 5], a[i + 6]
  i = i + 7
  local names
  if n > 0 then
    names = {} -- not by unpack, which takes some 8,000 at most
    for k = i, i + n - 1 do
      names[#names + 1] = a[k]
    end
    i = i + n
  end
  local done = status == 'memory' and value ~= '' and not names and hand_in_brief(name, attempt, nbytes, kind, value)
  local h = not done and rec(name)
  if h and h.state == prefix .. attempt then
    hand_in(name, h, attempt, status, nbytes, kind, value, names)
  elseif status == 'memory' and value == '' then
    S.evict(worker, name, attempt)
  end
end
for fn, count in pairs(over) do
  S.use_function(fn, -count)
end

-- What became ready here goes through the queues: the turn's own executor takes first, then those that are idle.
S.drain(SLICE)
if not lazy.hand_out and not declare then
  S.flush_queues()
end
local waiting = call('EXISTS', P .. 'queues') == 1
if not paused and want ~= 0 and (want > 0 and waiting or want < 0) then
  need('take')
  if want > 0 or S.assigned(ME, list) == 0 then
    S.take(ME, math.max(want, 1), quick, list)
  end
end
-- A paused worker's executors are never idle.
local free = capacity - call('HLEN', P .. 'batches:' .. ME)
if free > 0 and not paused then
  call('ZADD', P .. 'idle', free, ME)
else
  call('ZREM', P .. 'idle', ME)
end
queue_only = false
if waiting then
  S.serve_idle()
end
if unserved then
  S.later('serve -')
end
list[2] = S.settle_up(0)
call('HSET', me, 'n', N, 'sum', int(sum))
return list
