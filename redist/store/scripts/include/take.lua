-- @include hand_out
-- @lazy
-- What an executor takes from the queues: the best head among those that it may serve.

local OWN_QUEUES = 16 -- queues that a busy executor looks through for what is for it alone
local WINDOW = 256    -- queues that one look goes through; where there are more, the first ones and then others in turn
local window, partial -- queues, each with minus its priority, highest priority first; whether there are more
local heads = {}      -- by queue: number and time of its first entry; false where it is empty
local read_at         -- how often queues had grown in this script when these were read

-- The window, and whether there are more queues.
function S.queues()
  local grown = rawget(S, 'grown')
  if grown and grown[1] ~= read_at then
    window, heads, read_at = nil, {}, grown[1]
  end
  if not window then
    window = call('ZRANGE', P .. 'queues', 0, WINDOW, 'WITHSCORES')
    partial = #window > 2 * WINDOW
    if partial then
      window = S.queues_in_turn(WINDOW / 2)
    end
  end
  return window, partial
end

-- Number and time of the first entry of a queue, or false.
function S.head(suffix)
  local found = heads[suffix]
  if found == nil then
    local entry = call('LINDEX', P .. 'queue:' .. suffix, 0)
    if entry then
      local number, since = match(entry, '^(%d+) (%d+)')
      found = { tonumber(number), tonumber(since) }
    else
      found = false
      call('ZREM', P .. 'queues', suffix)
    end
    heads[suffix] = found
  end
  return found
end

-- Executor x may take the head of a queue.
function S.may_serve(x, suffix)
  if not string.find(suffix, '[:@]') then
    return true
  end
  local host = match(suffix, '@(.*)$')
  if host and S.host_of(x) ~= host then
    local first_entry = S.head(suffix)
    local left = first_entry and first_entry[2] + S.away() - S.now()
    if left and left > 0 then
      S.look_later(x, left)
      return false
    end
  end
  return S.may_run(x, match(suffix, ':([^@]*)') or '')
end

-- The non-empty queue with the highest priority, and of equals the one whose head waits longest.
local function best_queue(x)
  local list = S.queues()
  if #list == 2 then
    return heads[list[1]] ~= false and S.may_serve(x, list[1]) and list[1] or nil
  end
  local best, best_score, best_number
  for i = 1, #list, 2 do
    local suffix, score = list[i], tonumber(list[i + 1])
    if best and score > best_score then
      break
    end
    if heads[suffix] ~= false and S.may_serve(x, suffix) then
      local first_entry = S.head(suffix)
      if first_entry and (not best or first_entry[1] < best_number) then
        best, best_score, best_number = suffix, score, first_entry[1]
      end
    end
  end
  return best
end

-- The task of a queue entry, if the entry is still good: its name, and of its record state, function, data, count of
-- dependencies, class and count of dependents.
local function current(entry)
  local number, name = match(entry, '^(%d+) %d+ (.*)$')
  local h = cache[name]
  local v
  if h then
    v = { h.state, h.fn, h.data, h.deps, h.class, h.needed }
  else
    v = call('HMGET', RECORD .. name, 'state', 'fn', 'data', 'deps', 'class', 'needed')
  end
  if v[1] == 'queued ' .. number then
    return name, v
  end
end

-- The first good entry of the best queue of executor x, or of the one that is given, its record, and the queue. Stale ones
-- are skipped, a slice at most.
local function first_current(x, given_queue)
  for _ = 1, SLICE do
    local suffix = given_queue or best_queue(x)
    if not suffix then
      return nil
    end
    local entry = call('LPOP', P .. 'queue:' .. suffix)
    heads[suffix] = nil
    if not entry then
      call('ZREM', P .. 'queues', suffix)
      heads[suffix] = false
      if given_queue then
        return nil
      end
    else
      local name, v = current(entry)
      if name then
        return name, v, suffix
      end
    end
  end
  unserved = true
end

-- A task that has dependencies, its record and its queue, for executor x whose worker is short of memory: it may be what lets
-- payloads go, where others only make more of them. It is sought among the last entries of a queue, which became ready last,
-- and among the first.
local NEAR = 64
local function first_dependent(x)
  local list = S.queues()
  for i = 1, #list, 2 do
    local suffix = list[i]
    if heads[suffix] ~= false and S.may_serve(x, suffix) then
      local key = P .. 'queue:' .. suffix
      local length = call('LLEN', key)
      for part = 1, length > NEAR and 2 or 1 do
        local entries = call('LRANGE', key, part == 1 and -NEAR or 0, part == 1 and -1 or math.min(NEAR, length - NEAR) - 1)
        for k = part == 1 and #entries or 1, part == 1 and 1 or #entries, part == 1 and -1 or 1 do
          local name, v = current(entries[k])
          if name and v[4] then
            call('LREM', key, part == 1 and -1 or 1, entries[k])
            heads[suffix] = nil
            return name, v, suffix
          end
        end
      end
    end
  end
end

-- The only dependent of a task that is about to run, if it can follow in the same batch: nothing else is missing there, it is
-- as quick, and as free to go anywhere, or `bound` to the same executor by the same class. Its name and record.
local function follower(name, quick, bound)
  local next_name = call('SRANDMEMBER', P .. 'waiters:' .. name)
  local h = next_name and rec(next_name)
  if h and h.state == 'waiting' and h.missing == '1' and quick[h.fn]
    and (bound and h.class == bound or not (h.class or h.prio)) and not (h.home or h.reviving) and tonumber(h.deps) <= 64 then
    return next_name, h
  end
end

-- Take up to `want` tasks as one batch for executor x and append them to `list`. More than one only of `quick` functions
-- without a class, or of one that names an executor; never more than a fair share of what waits, and with each its chain of
-- only dependents; from the best queue, or from the one that is given. `strained`: one with dependencies first, if there is
-- one. Returns how many.
function S.take(x, want, quick, list, given_queue, strained)
  local name, v, suffix
  if strained then
    name, v, suffix = first_dependent(x)
  end
  if not name then
    name, v, suffix = first_current(x, given_queue)
  end
  if not name then
    return 0
  end
  local key = P .. 'queue:' .. suffix
  local entries = {}
  local bound = v[5] and S.class(v[5]).executor and v[5]
  local most = quick[v[2]] and (not v[5] or bound) and want or 1
  if most > 1 then
    want = math.min(want, math.ceil(call('LLEN', key) / (2 * math.max(1, call('HLEN', P .. 'executors')))))
    if want > 1 then
      entries = call('LPOP', key, want - 1) or {}
    end
  end
  -- Numbers of entries that turn out stale stay unused.
  local batch = call('HINCRBY', META, 'attempt', #entries + 1) - #entries
  local first_attempt, prefix = int(batch), 'processing e' .. x .. '.'
  local names, n, class = {}, 0, v[5] or ''
  local leaders = {} -- those of names that one task waits for
  local function assign()
    local attempt = n == 0 and first_attempt or int(batch + n)
    n = n + 1
    names[n] = name
    if v[6] == '1' then
      leaders[#leaders + 1] = name
    end
    if v[4] or v[3] == '' then
      S.append_task(list, first_attempt, attempt, name, { fn = v[2], data = v[3], deps = v[4] })
    else
      local m = #list
      list[m + 1], list[m + 2], list[m + 3], list[m + 4], list[m + 5], list[m + 6] = first_attempt, attempt, name, v[2], v[3], 0
    end
    local state = prefix .. attempt
    call('HSET', RECORD .. name, 'state', state)
    if cache[name] then
      cache[name].state = state
    end
  end
  assign()
  local back
  for i = 1, #entries do
    name, v = current(entries[i])
    if name and (back or not quick[v[2]]) then
      back = back or {}
      table.insert(back, 1, entries[i])
    elseif name then
      assign()
    end
  end
  if back then
    S.many('LPUSH', key, back)
  end
  if want > 1 then
    heads[suffix] = nil
  end
  local reserved = #entries + 1
  local k = 1
  while leaders[k] and n < most do
    local leader = leaders[k]
    local h
    name, h = follower(leader, quick, bound)
    if name then
      if n == reserved then
        call('HINCRBY', META, 'attempt', most - reserved)
        reserved = most
      end
      local attempt = int(batch + n)
      n = n + 1
      names[n] = name
      if h.needed == '1' then
        leaders[#leaders + 1] = name
      end
      S.set(name, h, 'state', prefix .. attempt)
      S.append_task(list, first_attempt, attempt, name, h, leader)
    end
    k = k + 1
  end
  call('HSET', P .. 'batches:' .. x, first_attempt, concat(names, '\n'))
  if class ~= '' then
    S.claim(x, first_attempt, class)
  end
  return n
end

-- What is in a queue for executor x alone goes onto `list`, however busy x is.
local function take_bound(x, suffix, list)
  while S.take_bound_thread(x) and S.take(x, 1, {}, list, suffix) > 0 do
  end
end

-- The queues that this script made longer: what is for one executor alone goes there, unless it has just given that back.
function S.serve_bound()
  local _, _, given = S.load_idle()
  local returned = rawget(S, 'returned') or {}
  for suffix in pairs(rawget(S, 'grown') or {}) do
    local x = suffix ~= 1 and S.bound_to(match(suffix, ':([^@]*)') or '')
    if x and not returned[x] then
      local m = given[x] or { 't', 0 }
      take_bound(x, suffix, m)
      if #m > 2 then
        given[x] = m
      end
    end
  end
end

-- Executor x has no thread free, and takes only what is for it alone.
function S.take_own(x, list)
  local queues = S.queues()
  for i = 1, math.min(#queues, 2 * OWN_QUEUES), 2 do
    local suffix = queues[i]
    if S.class(match(suffix, ':([^@]*)') or '').executor == x and heads[suffix] ~= false then
      take_bound(x, suffix, list)
    end
  end
end

-- Everything assigned to executor x and not handed in.
function S.assigned(x, list)
  local flat = call('HGETALL', P .. 'batches:' .. x)
  local count = 0
  for i = 1, #flat, 2 do
    local attempt = tonumber(flat[i])
    for name in string.gmatch(flat[i + 1], '[^\n]+') do
      local h = rec(name)
      if h and h.state == 'processing e' .. x .. '.' .. int(attempt) then
        S.append_task(list, flat[i], int(attempt), name, h)
        count = count + 1
      end
      attempt = attempt + 1
    end
  end
  return count
end

-- Idle executors, those loaded or the one that is given, take what they have threads for, from the best queue or the one
-- that is given.
function S.serve_idle(only, given_queue)
  local idle, idle_changed, given, beyond = S.load_idle()
  for i = 1, only and 1 or #idle do
    local entry = only or idle[i]
    local x = entry[1]
    local m = given[x] or { 't', 0 }
    while entry[2] > 0 and not unserved and S.take(x, 1, {}, m, given_queue) > 0 do
      entry[2] = entry[2] - 1
      idle_changed[x] = entry[2]
      given[x] = m
    end
  end
  if beyond and not only then
    S.seek_further()
  end
end
