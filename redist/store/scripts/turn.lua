-- @include lane
-- @include freeing
-- @include callers
-- @include take
-- @include hand_in
-- @include clock
-- An executor hands in what finished and takes what is next.
-- To want -1 is to have everything listed that is assigned, -2 only what names this executor: it has no thread free.
-- A result of an attempt that its key no longer names is discarded, and its payload dropped.
-- KEYS[1] META
-- ARGV[1] header, capacity, want, quick functions and their hashes, finished batches and their numbers, results; then per
--   result: name, attempt, status, nbytes, type, value, contained keys and their names
-- Reply OK more, then per task: batch, attempt, name, function, spec, dependencies, and per dependency: name, where, value
local RESYNC, OWN = -1, -2
local capacity, want = a[BODY], a[BODY + 1]
local worker, paused, claims = lane[4], lane[5], tonumber(lane[6] or 0) > 0
local strained = paused == '0' -- takes tasks, those that have dependencies first
if strained then
  paused = false
end
local prefix = 'processing e' .. ME .. '.'
local finished = BODY + 3 + a[BODY + 2] -- index of the count of finished batches
local first_result = finished + 2 + a[finished]
local results = a[first_result - 1]
local plain = 0 -- so many results from the first on are of the plain case, and handed in
local express = not repeated and not claims and a[finished] <= CHUNK

-- The plain case: inline values of tasks without dependencies, options and dependents, told to those who refer to them.
-- What `S.remember` does, in fewer calls and without the parts.
if express then
  local messages, spent = {}, {}
  local holder_of = {} -- refs:7 -> 7, read once; false for holders that are no callers
  if a[finished] > 0 then
    call('HDEL', P .. 'batches:' .. ME, unpack(a, finished + 1, finished + a[finished]))
  else
    call('SREM', P .. 'void', '')
  end
  local at = first_result
  while plain < results do
    local name, attempt, nbytes, kind, value = a[at], a[at + 1], a[at + 3], a[at + 4], a[at + 5]
    if a[at + 2] ~= 'memory' or value == '' or a[at + 6] ~= 0 then
      break
    end
    local key = RECORD .. name
    local flat = call('HGETALL', key)
    local current, long, holders = false, false, {}
    for k = 1, #flat, 2 do
      local f = flat[k]
      if f == 'state' then
        current = flat[k + 1] == prefix .. attempt
      elseif f == 'data' then
        long = flat[k + 1] == ''
      elseif f ~= 'fn' then
        local holder = holder_of[f]
        if holder == nil then
          holder = match(f, '^refs:([1-9]%d*)$') or false
          holder_of[f] = holder
        end
        if not holder then
          current = false
          break
        end
        holders[#holders + 1] = holder
      end
    end
    if not current then
      break
    end
    local data = value
    if #value > COMPACT then
      call('SET', P .. 'data:' .. name, value)
      data = ''
    elseif long then
      spent[#spent + 1] = P .. 'data:' .. name
    end
    call('HSET', key, 'state', 'memory', 'nbytes', nbytes, 'type', kind, 'data', data)
    for k = 1, #holders do
      local m = messages[holders[k]]
      if not m then
        m = { 's', 0, 0 }
        messages[holders[k]] = m
      end
      local n = #m
      m[n + 1], m[n + 2], m[n + 3], m[n + 4], m[n + 5], m[n + 6] = name, 'memory', '0', nbytes, kind, ''
      m[n + 7] = nbytes <= PUSH_LIMIT and value or ''
    end
    plain = plain + 1
    at = at + 7
  end
  first_result = at
  if spent[1] then
    call('UNLINK', unpack(spent))
  end
  for ordinal, m in pairs(messages) do
    local caller = P .. 'caller:' .. ordinal
    m[2] = call('HINCRBY', caller, 'pushed', 1)
    m[3] = call('HGET', caller, 'n') or 0
    call('PUBLISH', P .. 'to:' .. ordinal, cmsgpack.pack(m))
  end
  if plain == results and want ~= RESYNC and call('EXISTS', P .. 'queues') == 0 then
    -- A paused worker's executors are never idle.
    local free = capacity - call('HLEN', P .. 'batches:' .. ME)
    if free > 0 and not paused then
      call('ZADD', P .. 'idle', free, ME)
    else
      call('ZREM', P .. 'idle', ME)
    end
    call('HSET', me, 'n', N)
    return { 'OK', 0 }
  end
end

-- @general
if repeated then
  local list = { 'REPEAT', 0 }
  S.assigned(ME, list)
  return list
end
local list = { 'OK', 0 }
queue_only = true
local quick = {}
for k = BODY + 3, finished - 1 do
  quick[a[k]] = true
end

if not express then
  for k = finished + 1, finished + a[finished] do
    S.unclaim(ME, a[k])
    call('HDEL', P .. 'batches:' .. ME, a[k])
  end
end
local i = first_result
for _ = plain + 1, results do
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
  S.hand_in(ME, worker, name, attempt, status, nbytes, kind, value, names)
end

-- What became ready here goes through the queues: the turn's own executor takes first, then those that are idle.
S.drain(SLICE)
if not lazy.hand_out and not declare then
  S.flush_queues()
end
local waiting = call('EXISTS', P .. 'queues') == 1
if want == OWN then
  if waiting and not paused then
    need('take')
    S.take_own(ME .. '', list)
  end
elseif not paused and want ~= 0 and (want > 0 and waiting or want < 0) then
  need('take')
  if want > 0 or S.assigned(ME, list) == 0 then
    if S.take(ME, math.max(want, 1), quick, list, nil, strained) == 0 then
      S.look_further(ME)
    end
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
if rawget(S, 'grown') then
  S.serve_bound()
end
if waiting then
  S.serve_idle()
end
if unserved then
  S.later('serve -')
end
list[2] = S.settle_up(0)
call('HSET', me, 'n', N, 'sum', int(sum))
return list
