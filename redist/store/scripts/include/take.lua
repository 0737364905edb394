-- @include hand_out
-- @lazy
-- What an executor takes from the queues: the best head among those that it may serve.

-- Executor x may take the head of a queue.
local function may_serve(x, suffix)
  if not string.find(suffix, '[:@]') then
    return true
  end
  local host = match(suffix, '@(.*)$')
  if host and S.host_of(x) ~= host then
    local head = call('LINDEX', P .. 'queue:' .. suffix, 0)
    local since = head and match(head, '^%d+ (%d+)')
    local left = since and since + S.away() - S.now()
    if left and left > 0 then
      S.look_later(x, left)
      return false
    end
  end
  return S.may_run(x, match(suffix, ':([^@]*)') or '')
end

-- The non-empty queue with the highest priority, and of equals the one whose head waits longest.
local function best_queue(x)
  local flat = call('ZRANGE', P .. 'queues', 0, 255, 'WITHSCORES')
  if #flat == 2 then
    return may_serve(x, flat[1]) and flat[1] or nil
  end
  local best, best_score, best_number
  for i = 1, #flat, 2 do
    local suffix, score = flat[i], tonumber(flat[i + 1])
    if best and score > best_score then
      break
    end
    if may_serve(x, suffix) then
      local head = call('LINDEX', P .. 'queue:' .. suffix, 0)
      local number = head and tonumber(match(head, '^%d+'))
      if not number then
        call('ZREM', P .. 'queues', suffix)
      elseif not best or number < best_number then
        best, best_score, best_number = suffix, score, number
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

-- The first good entry of the best queue of executor x, its record, and the queue. Stale ones are skipped, a slice at most.
local function first_current(x)
  for _ = 1, SLICE do
    local suffix = best_queue(x)
    if not suffix then
      return nil
    end
    local entry = call('LPOP', P .. 'queue:' .. suffix)
    if not entry then
      call('ZREM', P .. 'queues', suffix)
    else
      local name, v = current(entry)
      if name then
        return name, v, suffix
      end
    end
  end
  unserved = true
end

-- The only dependent of a task that is about to run, if it can follow in the same batch: nothing else is missing there, and
-- it is as quick and as free to go anywhere. Its name and record.
local function follower(name, quick)
  local next_name = call('SRANDMEMBER', P .. 'waiters:' .. name)
  local h = next_name and rec(next_name)
  if h and h.state == 'waiting' and h.missing == '1' and quick[h.fn]
    and not (h.class or h.prio or h.home or h.reviving) and tonumber(h.deps) <= 64 then
    return next_name, h
  end
end

-- Take up to `want` tasks as one batch for executor x and append them to `list`. More than one only of `quick` functions
-- without a class, never more than a fair share of what waits, and with each its chain of only dependents. Returns how many.
function S.take(x, want, quick, list)
  local name, v, suffix = first_current(x)
  if not name then
    return 0
  end
  local key = P .. 'queue:' .. suffix
  local entries = {}
  local most = quick[v[2]] and not v[5] and want or 1
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
  local reserved = #entries + 1
  local k = 1
  while leaders[k] and n < most do
    local leader = leaders[k]
    local h
    name, h = follower(leader, quick)
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

-- Idle executors take what was queued although they were idle.
function S.serve_idle()
  local idle, idle_changed, given = S.load_idle()
  for _, entry in ipairs(idle) do
    local x = entry[1]
    local m = given[x] or { 't', 0 }
    while entry[2] > 0 and not unserved and S.take(x, 1, {}, m) > 0 do
      entry[2] = entry[2] - 1
      idle_changed[x] = entry[2]
      given[x] = m
    end
  end
end

-- As work: idle executors look again, where too many entries were void to find a good one at once, or resources came free.
function S.serve()
  unserved = false
  S.serve_idle()
  if unserved then
    S.later('serve -')
  end
  return SLICE
end
