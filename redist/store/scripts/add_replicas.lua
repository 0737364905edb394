-- @include lane
-- @include growing
-- @include callers
-- @include clock
-- A worker has copies: fetched from another, or found when it registers anew. Copies of no present attempt are evicted.
-- After the server lost writes a copy may be the first word of its key, which then waits for who wants it. Found ones put off
-- the end of the recovery: pins that they bring must be there before anything is freed. A container of many keys comes in parts.
-- KEYS[1] META
-- ARGV[1] header, 1 for found ones, then per copy: name, attempt, nbytes, type, contained keys and their names
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local BRINGING = 3000 -- ms in which the next call has to come
if recovering and a[BODY] == 1 and tonumber(recovering) < S.now() + BRINGING then
  call('HSET', META, 'recovering', int(S.now() + BRINGING))
end

-- The highest attempt of which a worker has a copy; 0 for none.
local function newest(h)
  local found = 0
  for f, value in pairs(h) do
    if sub(f, 1, 2) == 'w:' then
      found = math.max(found, tonumber(value))
    end
  end
  return found
end

-- The record under which a found copy is the value, or nil where it is not needed.
local function make_room(name, h, attempt)
  if not h then
    return S.placeholder(name)
  end
  if word(h.state) == 'memory' and S.where(h) and newest(h) < tonumber(attempt) then
    S.hollow(name, h) -- an older one was found before
  end
  if h.state == 'released' then
    call('RPUSH', P .. 'deferred', 'free ' .. name)
    return h
  end
end

local i = BODY + 1
while i <= #a do
  local name, attempt, nbytes, kind, n = a[i], int(a[i + 1]), int(a[i + 2]), a[i + 3], a[i + 4]
  local names = {}
  for k = i + 5, i + 4 + n do
    names[#names + 1] = a[k]
  end
  i = i + 5 + n
  local h = rec(name)
  local current = false
  if h and word(h.state) == 'memory' then
    for f, value in pairs(h) do
      if sub(f, 1, 2) == 'w:' and value == attempt then
        current = true
      end
    end
  end
  local room = recovering and not current and make_room(name, h, attempt)
  if room then
    S.remember(name, room, attempt, ME, nbytes, kind, '', n > 0 and names or nil)
  elseif current then
    S.set(name, h, 'w:' .. ME, attempt)
    call('HSET', P .. 'has:' .. ME, name, attempt)
    if h['c:' .. ME] then
      S.arrived(name, h, ME)
    end
    if recovering and kind ~= '' and (h.type or '') == '' then
      S.set(name, h, 'nbytes', nbytes, 'type', kind)
      if h.counted then
        S.discount(name, h)
        S.count_value(name, h)
      end
    end
    if recovering and n > 0 then
      S.set(name, h, 'contains', attempt)
      S.pin(attempt .. ' ' .. name, names)
    end
  elseif not (h and h['w:' .. ME] == attempt) then
    S.evict(ME, name, attempt)
  end
end
return S.done(S.settle_up())
