-- @include eligible
-- @include clock
-- @include publish
-- @include fields
-- @lazy
-- Copies of a value: how many there should be (`copies`), which worker is to make one (`c:W`), and which may go.
-- `c:W` is `0` while it is planned, then the time in ms by which the worker, which was asked, should have it; `MS V` is a move:
-- the copy of V goes when W has one. A key that is not as it should be is in `short`, with the time of the next look at it, and
-- has the field `tries`: how often a worker did not bring a copy. Copies of a worker that is closing do not count.
local PATIENCE = 10000 -- ms that a worker has to bring a copy, and a second for every RATE bytes that it is to bring
local RATE = 20000000
local LONGEST = 60000  -- ms until the next look, at most
local BRANCHING = 2    -- copies that are made of one at a time
local able             -- ordinals of running workers
local load = {}        -- by worker: copies that it has, or is to make
local bytes = {}       -- by worker: bytes that this script asked it for
local orders = {}      -- by worker: what it is asked for

-- Whether a worker lives, and whether it runs, too.
function S.lives(w)
  local c = S.caller(w)
  local lives = c and (c.inc or '') ~= ''
  return lives, lives and c.status ~= 'closing'
end

-- The ordinals of all workers that run, sorted.
function S.able()
  if not able then
    able = {}
    for _, w in ipairs(call('HKEYS', P .. 'workers')) do
      local _, runs = S.lives(w)
      if runs then
        able[#able + 1] = w
      end
    end
    table.sort(able, function(one, other)
      return tonumber(one) < tonumber(other)
    end)
  end
  return able
end

-- How many running workers have a copy, without worker `but`.
function S.copies_on(h, but)
  local count = 0
  for field in pairs(h) do
    local w = match(field, '^w:(%d+)$')
    if w and w ~= but then
      local _, runs = S.lives(w)
      count = count + (runs and 1 or 0)
    end
  end
  return count
end

-- The next look at a key that is not as it should be.
function S.look_at(name, h, at)
  call('ZADD', P .. 'short', int(at), name)
  if not h.tries then
    S.set(name, h, 'tries', '0')
  end
end

-- A key may have fewer copies than it should.
function S.fewer(name, h)
  S.look_at(name, h, S.now())
  S.later('copy ' .. name)
end

-- Nothing is to be copied any more.
function S.enough(name, h)
  if h.tries then
    call('ZREM', P .. 'short', name)
    local fields = { 'tries' }
    for field in pairs(h) do
      if sub(field, 1, 2) == 'c:' then
        fields[#fields + 1] = field
      end
    end
    S.unset(name, h, unpack(fields))
  end
end

-- Workers by the number of their copies, the fewest first; those of other memory than `taken` workers have come before, and
-- those that are short of memory last.
function S.by_load(workers, taken)
  local near = {}
  for w in pairs(taken) do
    local c = S.caller(w)
    near[c and c.memory or ''] = true
  end
  local list = {}
  for _, w in ipairs(workers) do
    if not taken[w] then
      load[w] = load[w] or call('HLEN', P .. 'has:' .. w)
      list[#list + 1] = w
    end
  end
  local function rank(w)
    local c = S.caller(w)
    return (c.status == 'paused' and 2 or 0) + (near[c.memory or ''] and 1 or 0)
  end
  table.sort(list, function(one, other)
    if rank(one) ~= rank(other) then
      return rank(one) < rank(other)
    elseif load[one] ~= load[other] then
      return load[one] < load[other]
    end
    return tonumber(one) < tonumber(other)
  end)
  return list
end

-- Worker `w` is to have a copy, in place of that of worker `from` if there is one.
function S.plan(name, h, w, from)
  load[w] = (load[w] or call('HLEN', P .. 'has:' .. w)) + 1
  S.set(name, h, 'c:' .. w, from and '0 ' .. from or '0')
end

-- Ask worker `w` for a copy. The `turn`th of the sources is asked first, those of the same memory before all others.
local function ask(name, h, w, sources, turn, from)
  local memory = S.caller(w).memory
  local addresses = {}
  for i = 1, #sources do
    local c = S.caller(sources[(turn + i - 1) % #sources + 1])
    table.insert(addresses, c.memory == memory and 1 or #addresses + 1, c.address or '')
  end
  local size = tonumber(h.nbytes or 0)
  bytes[w] = (bytes[w] or 0) + size
  local m = orders[w] or { 'copy' }
  orders[w] = m
  local n = #m
  m[n + 1], m[n + 2], m[n + 3], m[n + 4] = name, h['w:' .. sources[1]], int(size), concat(addresses, ' ')
  local due = S.now() + PATIENCE * math.min(6, 2 ^ tonumber(h.tries)) + math.floor(1000 * bytes[w] / RATE)
  S.set(name, h, 'c:' .. w, from and int(due) .. ' ' .. from or int(due))
  return due
end

-- One look at a key: what is planned is asked for, as fast as the copies that there are can serve; what is missing is planned.
function S.copy(name)
  local h = rec(name)
  if not h or not h.tries then
    return 1
  end
  if word(h.state) ~= 'memory' or not S.where(h) then
    S.enough(name, h)
    return 2
  end
  local now = S.now()
  local sources, have, coming, planned, flying = {}, 0, 0, {}, 0
  local taken, void, due = {}, {}, nil
  for field, value in pairs(h) do
    local kind, w = match(field, '^([wc]):(%d+)$')
    local lives, runs = false, false
    if kind then
      lives, runs = S.lives(w)
    end
    if kind == 'w' and lives then
      sources[#sources + 1] = w
      taken[w] = true
      have = have + (runs and 1 or 0)
    elseif kind == 'c' then
      local at, from = match(value, '^(%d+) ?(%d*)$')
      at, from = tonumber(at), from ~= '' and from or nil
      if not runs or h['w:' .. w] then
        void[#void + 1] = field
      elseif at > 0 and at <= now then
        void[#void + 1] = field
        h.tries = int(h.tries + 1)
      else
        taken[w] = true
        coming = coming + (from and 0 or 1)
        if at == 0 then
          planned[#planned + 1] = { w, from }
        else
          flying = flying + 1
          due = math.min(due or at, at)
        end
      end
    end
  end
  if void[1] then
    S.unset(name, h, unpack(void))
    S.set(name, h, 'tries', h.tries)
  end
  if #sources == 0 then -- what is left of it went with workers, and is about to be lost
    S.look_at(name, h, now + PATIENCE)
    return 2
  end
  table.sort(sources)
  table.sort(planned, function(one, other)
    return tonumber(one[1]) < tonumber(other[1])
  end)
  local tries = tonumber(h.tries)
  local missing = tonumber(h.copies or 1) - have - coming
  local pause = math.min(LONGEST, 1000 * 2 ^ math.min(tries, 6))
  local short_of_workers = false
  if missing > 0 then
    local choice = S.by_load(S.able(), taken)
    short_of_workers = #choice < missing
    -- after a failure it is another's turn
    for i = 1, math.min(missing, #choice) do
      planned[#planned + 1] = { choice[(tries + i - 1) % #choice + 1] }
    end
  end
  local room = (tonumber(h.branching or BRANCHING)) * #sources - flying
  for i, plan in ipairs(planned) do
    local w, from = plan[1], plan[2]
    if i <= room then
      load[w] = (load[w] or 0) + 1
      local at = ask(name, h, w, sources, flying + i - 1, from)
      due = math.min(due or at, at)
    elseif not h['c:' .. w] then
      S.plan(name, h, w, from)
    end
  end
  if due then
    S.look_at(name, h, due)
  elseif planned[1] or short_of_workers then
    S.look_at(name, h, now + math.max(pause, PATIENCE))
  else
    S.enough(name, h)
  end
  return 4 + 2 * #planned
end

-- A worker has the copy that it was to make. One that it takes the place of goes, unless too few would be left, or it is not
-- certain how many are: see drop_surplus.lua.
function S.arrived(name, h, w)
  local from = match(h['c:' .. w], '^%d+ (%d+)$')
  S.unset(name, h, 'c:' .. w)
  S.set(name, h, 'tries', '0')
  local attempt = from and h['w:' .. from]
  if attempt and not recovering and S.copies_on(h, from) >= tonumber(h.copies or 1) then
    S.drop_copy(name, h, from)
    S.evict(from, name, attempt)
  end
  S.later('copy ' .. name)
end

-- A worker cannot make the copy that it was to make: another is asked, or the same later.
function S.not_copied(name, h, w)
  S.unset(name, h, 'c:' .. w)
  local tries = h.tries + 1
  S.set(name, h, 'tries', int(tries))
  if S.copies_on(h) < tonumber(h.copies or 1) and tries % math.max(1, #S.able()) == 0 then
    S.look_at(name, h, S.now() + math.min(LONGEST, 1000 * 2 ^ math.min(tries, 6)))
  else
    S.later('copy ' .. name)
  end
end

-- A worker's copy is not there any more, and another is.
function S.drop_copy(name, h, w)
  S.unset(name, h, 'w:' .. w)
  call('HDEL', P .. 'has:' .. w, name)
end

-- `CURSOR ORDINAL`: a slice of what a closing worker has: what others have too few copies of is looked at.
function S.spare(argument)
  local cursor, w = match(argument, '^(%d+) (%d+)$')
  local reply = call('HSCAN', P .. 'has:' .. w, cursor, 'COUNT', SLICE)
  local flat = reply[2]
  for i = 1, #flat, 2 do
    local h = rec(flat[i])
    if h and h['w:' .. w] == flat[i + 1] and not h.tries and S.copies_on(h) < tonumber(h.copies or 1) then
      S.fewer(flat[i], h)
    end
  end
  if reply[1] ~= '0' then
    S.later('spare ' .. reply[1] .. ' ' .. w)
  end
  return 1 + #flat
end

-- `CURSOR ORDINAL`: a worker went that may have been asked for copies, or for 0 one came that may be.
function S.look_anew(argument)
  local cursor, w = match(argument, '^(%d+) (%d+)$')
  local reply = call('ZSCAN', P .. 'short', cursor, 'COUNT', SLICE)
  for i = 1, #reply[2], 2 do
    local h = rec(reply[2][i])
    if h and (w == '0' or h['c:' .. w]) then
      S.later('copy ' .. reply[2][i])
    end
  end
  if reply[1] ~= '0' then
    S.later('look_anew ' .. reply[1] .. ' ' .. w)
  end
  return 1 + #reply[2]
end

-- A share of the keys that are due for another look.
function S.look_for_copies()
  for _, name in ipairs(call('ZRANGEBYSCORE', P .. 'short', '-inf', int(S.now()), 'LIMIT', 0, 20)) do
    S.later('copy ' .. name)
  end
end

closers[#closers + 1] = function()
  for w, m in pairs(orders) do
    call('RPUSH', P .. 'inbox:' .. w, cmsgpack.pack(m))
    S.publish('to:' .. w, { 'c' })
  end
end
