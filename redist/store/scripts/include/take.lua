-- @include hand_out
-- @lazy
-- What an executor takes from the queues: the best head among those that it may serve.

-- The non-empty queue with the highest priority, and of equals the one whose head waits longest. `refused` are passed over.
local function best_queue(x, refused)
  local flat = call('ZRANGE', P .. 'queues', 0, 255, 'WITHSCORES')
  if #flat == 2 then
    local suffix = flat[1]
    if not refused[suffix] and S.may_run(x, match(suffix, ':(.*)$') or '') then
      return suffix
    end
    return nil
  end
  local best, best_score, best_number
  for i = 1, #flat, 2 do
    local suffix, score = flat[i], tonumber(flat[i + 1])
    if best and score > best_score then
      break
    end
    if not refused[suffix] and S.may_run(x, match(suffix, ':(.*)$') or '') then
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

-- The task of a queue entry if the entry is still good, with those fields of its record that a hand-out needs.
local function current(entry)
  local number, name = match(entry, '^(%d+) %d+ (.*)$')
  local h = cache[name]
  if h == nil then
    local v = call('HMGET', RECORD .. name, 'state', 'fn', 'data', 'deps', 'class')
    h = { state = v[1], fn = v[2], data = v[3], deps = v[4], class = v[5] }
  end
  if h and h.state == 'queued ' .. number then
    return name, h
  end
end

-- Take up to `want` tasks as one batch for executor x and append them to `list`. More than one only of `quick` functions,
-- and never more than a fair share of what waits. Returns how many.
function S.take(x, want, quick, list)
  local chosen, refused, scanned = {}, {}, 0
  while #chosen == 0 and scanned < SLICE do
    local suffix = best_queue(x, refused)
    if not suffix then
      return 0
    end
    local key = P .. 'queue:' .. suffix
    local entry = call('LPOP', key)
    if not entry then
      call('ZREM', P .. 'queues', suffix)
    else
      scanned = scanned + 1
      local name, h = current(entry)
      if name then
        chosen[1] = { name, h }
        if want > 1 and quick[h.fn] and not match(suffix, ':') then
          local share = math.ceil(call('LLEN', key) / (2 * math.max(1, call('HLEN', P .. 'executors'))))
          want = math.min(want, share)
          if want > 1 then
            local back
            for _, more in ipairs(call('LPOP', key, want - 1) or {}) do
              name, h = current(more)
              if name and (back or not quick[h.fn]) then
                back = back or {}
                table.insert(back, 1, more)
              elseif name then
                chosen[#chosen + 1] = { name, h }
              end
            end
            if back then
              S.many('LPUSH', key, back)
            end
          end
        end
      end
    end
  end
  local n = #chosen
  if n == 0 then
    S.unserved = true
    return 0
  end
  local batch = call('HINCRBY', META, 'attempt', n) - n + 1
  local names, first_attempt, prefix = {}, int(batch), 'processing e' .. x .. '.'
  for i = 1, n do
    local name, h = chosen[i][1], chosen[i][2]
    local attempt = int(batch + i - 1)
    names[i] = name
    S.append_task(list, first_attempt, attempt, name, h)
    h.state = prefix .. attempt -- also in the cache, where the record is there
    call('HSET', RECORD .. name, 'state', h.state)
  end
  call('HSET', P .. 'batches:' .. x, first_attempt, concat(names, '\n'))
  S.claim(x, first_attempt, chosen[1][2].class or '')
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

-- Note how many threads of executor x are free, given its capacity. A paused worker's executors are never idle.
function S.note_idle(x, capacity, paused)
  local free = capacity - call('HLEN', P .. 'batches:' .. x)
  if free > 0 and not paused then
    call('ZADD', P .. 'idle', free, x)
  else
    call('ZREM', P .. 'idle', x)
  end
end

-- Idle executors take what was queued although they were idle.
function S.serve_idle()
  local idle, idle_changed, given = S.load_idle()
  for _, entry in ipairs(idle) do
    local x = entry[1]
    local m = given[x] or { 't', 0 }
    while entry[2] > 0 and not S.unserved and S.take(x, 1, {}, m) > 0 do
      entry[2] = entry[2] - 1
      idle_changed[x] = entry[2]
      given[x] = m
    end
  end
end

-- As work: idle executors look again, where too many entries were void to find a good one at once, or resources came free.
function S.serve()
  S.unserved = nil
  S.serve_idle()
  if S.unserved then
    S.later('serve -')
  end
  return SLICE
end
