-- @include lane
-- @include growing
-- @include callers
-- @include clock
-- @include answers
-- @include quota
-- @include telling
-- Make tasks known, count the caller's references, and hand out or queue what is ready.
-- A name that is known already only gains the reference; one taken by another function is refused (pushed as erred).
-- KEYS[1] META
-- ARGV[1] header, tasks, functions, classes, 1 if fresh names still are; then per function: hash, pickle or '' when sent before; per class of
--   the tasks: hash, workers, resources, strict (2: `workers` is the ordinal of an executor); per task: name, index of its
--   function, spec, options ('', `+` for a fresh name, or `FLAGS COUNT RETRIES PRIORITY CLASS`), dependencies, and their names
-- FLAGS: 1 fire and forget, 2 a fresh name, 4 the further dependencies are told of by `link`, 8 ahead of what is queued when
--   what it waits for has come, 16 idle executors take turns with such tasks
-- Reply OK more | NO quota text
if repeated then
  local refused = call('HGET', P .. 'answers:' .. ME, N)
  if refused then
    return { 'NO', unpack(cmsgpack.unpack(refused)) }
  end
  return { 'REPEAT', 0 }
end
local tasks, functions, classes_given, trust = a[BODY], a[BODY + 1], a[BODY + 2], a[BODY + 3] == 1
local first_task = BODY + 4 + 2 * functions + 4 * classes_given
local field = 'refs:' .. ME

if epoch[7] then -- a name that is still being forgotten cannot come again yet
  local at = first_task
  for _ = 1, tasks do
    if call('HGET', RECORD .. a[at], 'state') == 'forgetting' then
      return { 'WAIT' }
    end
    at = at + 5 + a[at + 4]
  end
end
local plain = 0 -- so many tasks from the first on are of the plain case: no dependencies, no options, a new name
local beyond    -- some were queued, and more executors than were looked at may be idle

do
  local unsure, seen = {}, {}
  local at = first_task
  while plain < tasks and plain < CHUNK and not epoch[8] do
    local name, options = a[at], a[at + 3]
    if a[at + 4] ~= 0 or options ~= '' and options ~= '+' then
      break
    end
    if not trust or options == '' then
      if seen[name] then
        break
      end
      seen[name] = true
      unsure[#unsure + 1] = RECORD .. name
    end
    plain = plain + 1
    at = at + 5
  end
  if unsure[1] and call('EXISTS', unpack(unsure)) > 0 then
    plain = 0
  end
end

-- What `admit` does, in fewer calls and without the parts: to idle executors first, the others into the queue.
if plain > 0 then
  local idle = call('ZREVRANGE', P .. 'idle', 0, math.min(plain, 128) - 1, 'WITHSCORES')
  local free = 0
  for x = 2, #idle, 2 do
    free = free + idle[x]
  end
  free = math.min(free, plain)
  local attempt, number = tonumber(epoch[4] or 0), tonumber(epoch[5] or 0)
  call('HSET', META, 'attempt', format('%d', attempt + free), 'enqueued', format('%d', number + plain - free),
    'keys', format('%d', (epoch[6] or 0) + plain))
  local uses = {}
  for f = 1, functions do
    local hash, data = a[BODY + 2 + 2 * f], a[BODY + 3 + 2 * f]
    if data ~= '' and call('SADD', P .. 'functions:' .. ME, hash) == 1 then
      call('SET', P .. 'fn:' .. hash, data)
      uses[hash] = 1
    end
  end
  local names, entries, now = {}, {}, nil
  local x, left, messages = -1, 0, {} -- the executor that is being served, its free threads, what each is told
  local at = first_task
  for k = 1, plain do
    local name, hash, spec, state = a[at], a[BODY + 2 + 2 * a[at + 1]], a[at + 2], nil
    at = at + 5
    if k <= free then
      while left == 0 do
        x = x + 2
        left = tonumber(idle[x + 1])
        messages[x] = { 't', 0 }
      end
      left = left - 1
      local m, text = messages[x], format('%d', attempt + k)
      local n = #m
      m[n + 1], m[n + 2], m[n + 3], m[n + 4], m[n + 5], m[n + 6] = text, text, name, hash, spec, 0
      call('HSET', P .. 'batches:' .. idle[x], text, name)
      state = 'processing e' .. idle[x] .. '.' .. text
    else
      if not now then
        local t = call('TIME')
        now = format(' %d ', t[1] * 1000 + math.floor(t[2] / 1000))
      end
      local text = format('%d', number + k - free)
      entries[#entries + 1] = text .. now .. name
      state = 'queued ' .. text
    end
    if #spec > COMPACT then
      call('SET', P .. 'data:' .. name, spec)
      spec = ''
    end
    call('HSET', RECORD .. name, 'fn', hash, 'data', spec, field, '1', 'state', state)
    names[k] = name
    uses[hash] = (uses[hash] or 0) + 1
  end
  sum = sum + plain
  call('SADD', P .. 'holds:' .. ME, unpack(names))
  for hash, by in pairs(uses) do
    call('HINCRBY', P .. 'fns', hash, by)
  end
  beyond = entries[1] and #idle == 2 * 128
  if entries[1] then
    call('RPUSH', P .. 'queue:0', unpack(entries))
    call('ZADD', P .. 'queues', 0, '0')
  end
  for y = 1, x, 2 do
    if y == x and left > 0 then
      call('ZADD', P .. 'idle', left, idle[y])
    else
      call('ZREM', P .. 'idle', idle[y])
    end
    call('PUBLISH', P .. 'to:' .. idle[y], cmsgpack.pack(messages[y]))
  end
  if plain == tasks and classes_given == 0 then
    if beyond then
      call('RPUSH', P .. 'work', 'seek 0 0')
    end
    call('HSET', me, 'n', N, 'sum', format('%d', sum))
    return { 'OK', beyond and 1 or 0 }
  end
end

-- @general
local over = epoch[8] and S.over_quota(0)
if over then
  return S.refuse_for_good('quota', over)
end
if beyond then
  S.later('seek 0 0')
end
local hashes, held = {}, {}
local i = BODY + 4
for f = 1, functions do
  local hash, data = a[i], a[i + 1]
  i = i + 2
  hashes[f] = hash
  if data ~= '' and call('SADD', P .. 'functions:' .. ME, hash) == 1 then
    call('SET', P .. 'fn:' .. hash, data)
    S.use_function(hash, 1)
  end
end
for _ = 1, classes_given do
  if call('SADD', P .. 'functions:' .. ME, a[i]) == 1 then
    S.use_function(a[i], 1)
  end
  local new = call('HSET', P .. 'class:' .. a[i], 'workers', a[i + 1], 'resources', a[i + 2], 'strict', int(a[i + 3]))
  if new > 0 and call('EXISTS', P .. 'queues') == 1 then
    S.later('serve -') -- it was lost, it may be, while tasks of it are queued
  end
  i = i + 4
end

-- The name is known: refer to it, and say how it stands where that will not change by itself.
local function refer(name, h, fn, count)
  if h.fn and h.fn ~= fn then
    S.push(ME, name, 'erred', '0', '0', 'KeyTaken', '', format(
      '!KeyTaken\0the key %s is in use by another function; give the task a key of its own', name))
    return false
  end
  if count > 0 then
    sum = sum + count - tonumber(h[field] or 0)
    S.set(name, h, field, int(count))
    held[#held + 1] = name
  end
  local state = word(h.state)
  if state == 'memory' or state == 'erred' and not (h.untold and h.linking) then
    S.tell_one(ME, name, h)
  elseif state == 'released' then
    S.later('revive ' .. name)
  end
  return true
end

-- Link a new task to its dependencies. Returns how many are missing, and the erred one if any.
local function link(name, deps)
  local missing, erred, released = 0, nil, {}
  for _, d in ipairs(deps) do
    local hd = rec(d)
    local state = word(hd.state)
    if state == 'memory' then
      call('SADD', P .. 'users:' .. d, name)
      S.bump(d, hd, 'needed', 1)
    elseif state == 'erred' then
      call('SADD', P .. 'dependents:' .. d, name)
      S.set(d, hd, 'fan', '1')
      erred = erred or d
    else
      call('SADD', P .. 'waiters:' .. d, name)
      S.bump(d, hd, 'needed', 1)
      missing = missing + 1
      if state == 'released' then
        released[#released + 1] = d
      end
    end
  end
  for k = 1, erred and 0 or #released do -- a task that has erred already needs none of them
    S.later('revive ' .. released[k])
  end
  S.many('SADD', P .. 'deps:' .. name, deps)
  return missing, erred
end

local function unknown(name, deps)
  for _, d in ipairs(deps) do
    local hd = rec(d)
    if not hd and recovering then
      S.placeholder(d)
    elseif not hd or hd.state == 'forgetting' or d == name then
      return d
    end
  end
end

-- A task that was given up since its submitter had not told it wholly: this one does. Its edges are those of an erred task,
-- until it is run again.
local function tell_again(name, h, spec, count, deps, more)
  local fault = deps and unknown(name, deps)
  if fault then
    fault = format('its dependency %s is not known (released, cancelled, or from before a restart)', fault)
  elseif not more then
    fault = not S.covers(name, h, deps or {}) and 'somebody else has submitted it with other dependencies'
  end
  if fault then
    if h[field] then
      sum = sum - h[field]
      call('SREM', P .. 'holds:' .. ME, name)
      S.let_go(name, h, field)
    end
    S.tell_cancelled(ME, name, fault)
    return
  end
  sum = sum + count - tonumber(h[field] or 0)
  S.set(name, h, field, int(count))
  held[#held + 1] = name
  if not h.data then
    S.set(name, h, 'data', S.data_field(name, spec))
  end
  local linked = 0
  for _, d in ipairs(deps or {}) do
    if call('SADD', P .. 'deps:' .. name, d) == 1 then
      linked = linked + 1
      call('SADD', P .. 'dependents:' .. d, name)
      S.set(d, rec(d), 'fan', '1')
    end
  end
  S.bump(name, h, 'deps', linked)
  if more and not h.linking then
    S.set(name, h, 'linking', ME)
    S.bump(name, h, 'missing', 1)
  elseif not more then
    if h.linking then
      S.unset(name, h, 'linking')
      S.bump(name, h, 'missing', -1)
    end
    S.unset(name, h, 'untold')
    S.later('retry ' .. name)
  end
end

local function admit(name, fn, spec, options, deps)
  local flags, count, retries, priority, class = 0, 1, '0', '0', ''
  if options ~= '' then
    flags, count, retries, priority, class = match(options, '^(%d+) (%d+) (%d+) (%S+) (.*)$')
    flags, count = tonumber(flags), tonumber(count)
  end
  local h = rec(name)
  -- A name that is known without any way to compute it takes this one.
  local bare = h and h.state == 'released' and not h.fn and not h.data
  local more = flags % 8 >= 4
  if h and h.untold and h.state == 'erred' and h.fn == fn and count > 0 and (not more or (h.linking or ME) == ME) then
    return tell_again(name, h, spec, count, deps, more)
  end
  if h and not bare then
    if h.linking and h.linking ~= ME and h.state == 'waiting' and h.fn == fn and count > 0 and not more and deps
      and not unknown(name, deps) and S.covers(name, h, deps) then
      S.told(name, h, deps)
    end
    local ended = h.state == 'memory' or h.state == 'erred'
    if refer(name, h, fn, count) and flags % 2 == 1 and not h['refs:0'] and not ended then
      S.set(name, h, 'refs:0', '1')
      call('SADD', P .. 'holds:0', name)
    end
    return
  end
  local lost = deps and unknown(name, deps)
  if lost then
    S.tell_cancelled(ME, name, format('its dependency %s is not known (released, cancelled, or from before a restart)', lost))
    return
  end
  if not bare then
    h = {}
    S.create(name, h)
  end
  h.fn = fn
  S.use_function(fn, 1)
  h.data = S.data_field(name, spec)
  local fields = { 'fn', fn, 'data', h.data }
  local function add(f, value)
    h[f] = value
    fields[#fields + 1] = f
    fields[#fields + 1] = value
  end
  if epoch[8] and not h.owner then
    add('owner', ME)
  end
  if count > 0 then
    sum = sum + count - tonumber(h[field] or 0)
    add(field, int(count))
    held[#held + 1] = name
  end
  if flags % 2 == 1 then
    add('refs:0', '1')
    call('SADD', P .. 'holds:0', name)
  end
  if retries ~= '0' then
    add('retries', retries)
  end
  if priority ~= '0' then
    add('prio', priority)
  end
  if class ~= '' then
    add('class', class)
    S.use_function(class, 1)
  end
  local missing, erred = 0, nil
  if deps then
    add('deps', int(#deps))
    missing, erred = link(name, deps)
  end
  if flags % 16 >= 8 then
    add('ahead', '1')
  end
  if more then
    missing = missing + 1 -- those that `link` is going to tell of
    add('linking', ME)
  end
  if missing > 0 then
    add('missing', int(missing))
  end
  if not wanted(h) then
    S.later('free ' .. name)
  end
  if erred then
    h.state = 'waiting'
    call('HSET', RECORD .. name, 'state', 'waiting', unpack(fields))
    S.err(name, h, rec(erred).type, nil, rec(erred).cause or erred)
    return
  end
  if missing > 0 then
    add('state', 'waiting')
  else
    if flags >= 16 then
      S.take_turns()
    end
    add('state', S.route(name, h))
    if h.home then
      add('home', h.home)
    end
  end
  call('HSET', RECORD .. name, unpack(fields))
end

i = i + 5 * plain
for _ = plain + 1, tasks do
  local name, fn, spec, options, n = a[i], hashes[a[i + 1]], a[i + 2], a[i + 3], a[i + 4]
  i = i + 5
  local deps
  if n > 0 then
    deps = {}
    local seen = {}
    for k = i, i + n - 1 do
      if not seen[a[k]] then
        seen[a[k]] = true
        deps[#deps + 1] = a[k]
      end
    end
    i = i + n
  end
  admit(name, fn, spec, options == '+' and '' or options, deps)
end
S.many('SADD', P .. 'holds:' .. ME, held)
local more = S.settle_up()
return S.done(more)
