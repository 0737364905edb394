-- @include work
-- @include eligible
-- @include locality
-- @lazy
-- From ready to processing: straight to an idle executor, else into a queue.
local PAGE = 128                       -- idle executors that a script looks at
local idle, idle_changed               -- {executor, free threads}, most free first
local beyond                           -- there may be more idle ones
local numbers                          -- a stretch of enqueue numbers reserved by this script
local queued, fronts = {}, {}          -- entries by queue suffix
local given = {}                       -- messages by executor
local barred                           -- executor that a task is not given to
local later = {}                       -- executors that are told to look again in so many ms
local MOST_BOUND = 256                 -- batches of an executor, beyond which what is for it alone is queued

function S.load_idle()
  if not idle then
    idle, idle_changed = {}, {}
    local flat = call('ZREVRANGE', P .. 'idle', 0, PAGE - 1, 'WITHSCORES')
    for i = 1, #flat, 2 do
      idle[#idle + 1] = { flat[i], tonumber(flat[i + 1]) }
    end
    beyond = #idle == PAGE
  end
  return idle, idle_changed, given, beyond
end

-- An idle executor that may run the class, or nil; one of its free threads is taken. Executors of the host `home`, then those
-- of a worker that the class names, come first; with `far` there is nothing but `home`.
function S.pick(hash, home, far)
  S.load_idle()
  local choice, merit = nil, 0
  for i = 1, #idle do
    local entry = idle[i]
    if entry[2] > 0 and entry[1] ~= barred and (hash == '' or S.may_run(entry[1], hash)) then
      local at_home = not home or S.host_of(entry[1]) == home
      local m = at_home and 3 or 1
      if hash ~= '' then
        local c, worker = S.class(hash), S.caller(entry[1]).worker
        if not c.any and S.is_named(c.workers, worker, S.caller(worker)) then
          m = m + 1
        end
      end
      if m > merit and (at_home or not far) then
        choice, merit = entry, m
        if hash == '' and at_home then
          break
        end
      end
    end
  end
  if choice then
    choice[2] = choice[2] - 1
    idle_changed[choice[1]] = choice[2]
    return choice[1]
  end
end

-- What names executor x need not wait for a thread there: it is given as long as x has not come behind. Whether it may be; a
-- free thread is then taken, as x runs it in that.
function S.take_bound_thread(x)
  if call('HLEN', P .. 'batches:' .. x) >= MOST_BOUND then
    return false
  end
  S.load_idle()
  local entry
  for i = 1, #idle do
    if idle[i][1] == x then
      entry = idle[i]
    end
  end
  if not entry and beyond then
    entry = { x, tonumber(call('ZSCORE', P .. 'idle', x) or 0) }
    idle[#idle + 1] = entry
  end
  if entry and entry[2] > 0 then
    entry[2] = entry[2] - 1
    idle_changed[x] = entry[2]
  end
  return true
end

-- The idle executors are looked at from another one on each time, for what stays where it runs.
function S.take_turns()
  S.load_idle()
  if #idle > 1 then
    local turn, before = call('HINCRBY', META, 'placed', 1), { unpack(idle) }
    for i = 1, #idle do
      idle[i] = before[(turn + i) % #idle + 1]
    end
  end
end

-- Executor x is told to look into the queues again in so many ms.
function S.look_later(x, ms)
  later[x] = math.min(later[x] or ms, ms)
end

-- One more of the idle executors, all of which are on other hosts, looks when the task has waited for its own.
local function wait_for_home(hash)
  for i = 1, #idle do
    local x = idle[i][1]
    if idle[i][2] > 0 and not later[x] and (hash == '' or S.may_run(x, hash)) then
      return S.look_later(x, S.away())
    end
  end
end

-- Write who is less idle now.
local function write_idle()
  for x, free in pairs(idle_changed or {}) do
    if free > 0 then
      call('ZADD', P .. 'idle', free, x)
    else
      call('ZREM', P .. 'idle', x)
    end
  end
  idle, idle_changed = nil, nil
end

-- Executor x is given nothing more.
function S.not_idle(x)
  call('ZREM', P .. 'idle', x)
  if idle then
    for i = #idle, 1, -1 do
      if idle[i][1] == x then
        table.remove(idle, i)
      end
    end
    idle_changed[x] = nil
  end
  given[x] = nil
end

-- The task as it travels to an executor. Instead of where the value of `leader` lies it says `+`: that task is ahead in the
-- same batch.
function S.append_task(list, batch, attempt, name, h, leader)
  local n = #list
  local deps = h.deps and tonumber(h.deps) or 0
  local spec = h.data
  if spec == '' then
    spec = S.read_data(name, h)
  end
  list[n + 1], list[n + 2], list[n + 3], list[n + 4], list[n + 5], list[n + 6] = batch, attempt, name, h.fn, spec or '', deps
  if deps > 64 then
    list[n + 6] = -deps
  elseif deps == 1 and leader then
    list[n + 7], list[n + 8], list[n + 9] = leader, '+', ''
  elseif deps > 0 then
    n = n + 6
    for _, d in ipairs(call('SMEMBERS', P .. 'deps:' .. name)) do
      local hd = d ~= leader and rec(d)
      local where = d == leader and '+' or hd and S.where(hd) or ''
      list[n + 1], list[n + 2] = d, where
      if where == '' then
        list[n + 3] = hd and word(hd.state) == 'memory' and S.read_data(d, hd) or ''
      else
        list[n + 3] = hd and hd.nbytes or ''
      end
      n = n + 3
    end
  end
end

-- Give one task to executor x as a batch of its own, and return its state; the caller writes the state.
function S.give(x, name, h, hash)
  local attempt = int(call('HINCRBY', META, 'attempt', 1))
  call('HSET', P .. 'batches:' .. x, attempt, name)
  if hash ~= '' then
    S.claim(x, attempt, hash)
  end
  local m = given[x]
  if not m then
    m = { 't', 0 }
    given[x] = m
  end
  S.append_task(m, attempt, attempt, name, h)
  return 'processing e' .. x .. '.' .. attempt
end

-- The queue of a task: its priority, its class where it has one, and its host where it had better wait for that:
-- `PRIO[:CLASS][@HOST]`.
function S.suffix(h)
  local class = h.class or ''
  return (h.prio or '0') .. (class ~= '' and ':' .. class or '') .. (h.home and '@' .. h.home or '')
end

-- Put a task into its queue and return its state; the caller writes the state.
local now_text
function S.enqueue(name, h, front, suffix)
  if not numbers or numbers.left == 0 then
    numbers = { next = call('HINCRBY', META, 'enqueued', 500) - 499, left = 500 }
    now_text = now_text or ' ' .. int(S.now()) .. ' '
  end
  local number = int(numbers.next)
  numbers.next, numbers.left = numbers.next + 1, numbers.left - 1
  suffix = suffix or S.suffix(h)
  local into = front and fronts or queued
  local list = into[suffix]
  if not list then
    list = {}
    into[suffix] = list
  end
  list[#list + 1] = number .. now_text .. name
  return 'queued ' .. number
end

-- The state of a task whose dependencies are all there: given to an idle executor, or queued. Sets h.home where the task
-- waits for the host of its inputs; the caller writes both. `front`: it had its turn before, or goes ahead. While queue_only is set it is
-- queued even if an executor is idle.
function S.route(name, h, front)
  local class = h.class or ''
  local home, far
  h.home = nil
  if h.deps and (class == '' or not S.class(class).executor) then
    home, far = S.home(name, class)
  end
  local x = not queue_only and S.bound_to(class)
  if x then
    x = x ~= barred and S.take_bound_thread(x) and x
  else
    x = not queue_only and S.pick(class, home, far)
  end
  if x then
    return S.give(x, name, h, class)
  end
  if far then
    h.home = home
    if not queue_only then
      wait_for_home(class)
    end
  end
  if beyond and not queue_only then
    S.seek_for(S.suffix(h))
  end
  return S.enqueue(name, h, front)
end

function S.ready(name, h, front)
  local before = h.home
  local state = S.route(name, h, front)
  if h.home then
    S.set(name, h, 'state', state, 'home', h.home)
  else
    S.set(name, h, 'state', state)
    if before then
      call('HDEL', RECORD .. name, 'home')
    end
  end
end

-- A task that asked not to run on executor x: another one that is idle gets it, else it goes behind what is queued.
function S.elsewhere(x, name, h)
  local before = queue_only
  queue_only, barred = false, x
  S.ready(name, h)
  queue_only, barred = before, nil
  write_idle() -- it is read anew when x itself may be among them
end

-- The queue entry of a task is void; void entries at the head of a queue go, so that a queue of void ones does not stay.
local sifting = {}
function S.void(h)
  local suffix = S.suffix(h)
  if not sifting[suffix] then
    sifting[suffix] = true
    S.later('sift ' .. suffix)
  end
end

function S.sift(suffix)
  sifting[suffix] = nil
  if queued[suffix] or fronts[suffix] then
    S.flush_queues()
  end
  local key = P .. 'queue:' .. suffix
  for step = 1, SLICE do
    local entry = call('LINDEX', key, 0)
    if not entry then
      call('ZREM', P .. 'queues', suffix)
      return step
    end
    local number, name = match(entry, '^(%d+) %d+ (.*)$')
    local h = rec(name)
    if h and h.state == 'queued ' .. number then
      return step
    end
    call('LPOP', key)
  end
  S.later('sift ' .. suffix)
  return SLICE
end

-- What is in a queue that this script made longer, and how often any was: S.grown = { times, QUEUE = true }.
local function add_to_queues(command, lists)
  for suffix, list in pairs(lists) do
    S.many(command, P .. 'queue:' .. suffix, list)
    call('ZADD', P .. 'queues', -tonumber(match(suffix, '^[^:@]+')), suffix)
    local grown = rawget(S, 'grown') or { 0 }
    S.grown = grown
    grown[1] = grown[1] + 1
    grown[suffix] = true
  end
end

function S.flush_queues()
  add_to_queues('RPUSH', queued)
  add_to_queues('LPUSH', fronts)
  queued, fronts = {}, {}
end

closers[#closers + 1] = function()
  S.flush_queues()
  write_idle()
  for x, m in pairs(given) do
    S.publish('to:' .. x, m)
  end
  for x, ms in pairs(later) do
    S.publish('to:' .. x, { 't', ms })
  end
  given, later = {}, {}
end
