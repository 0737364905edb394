-- @include lane
-- @include growing
-- @include callers
-- @include clock
-- @include telling
-- Further dependencies of a task whose submission announced them; with the last it may run. Passed over where that is not so
-- any more: the task is not known, somebody else submitted it, or all of its dependencies are. Safe to repeat.
-- KEYS[1] META
-- ARGV[1] header, name, dependencies told before, how many they are in all (0: more follow), names
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local name, before, total = a[BODY], a[BODY + 1], a[BODY + 2]
local h = rec(name)

local function complete()
  S.unset(name, h, 'linking')
  return S.bump(name, h, 'missing', -1) <= 0
end

if not h or h.linking ~= ME or h.state == 'forgetting' then
  return S.done(S.settle_up())
elseif word(h.state) == 'memory' then
  complete()
  return S.done(S.settle_up())
end

local unfinished = h.state == 'waiting'
local fault = tonumber(h.deps or 0) < before and 'a part of its dependencies was refused'
local names = {} -- not by unpack, which takes some 8,000 at most
for i = BODY + 3, #a do
  names[#names + 1] = a[i]
end
local unknown, erred, released
if not fault then
  unknown, erred, released = S.further(name, h, names)
  fault = unknown and format('its dependency %s is not known (released, cancelled, or from before a restart)', unknown)
end
if not fault and total > 0 and tonumber(h.deps) ~= total then
  fault = 'a part of its dependencies was refused'
end

if fault then
  local field = 'refs:' .. ME
  if h[field] then
    sum = sum - h[field]
    S.unset(name, h, field)
    call('SREM', P .. 'holds:' .. ME, name)
    S.tell_cancelled(ME, name, fault)
  end
  S.abandon('1 ' .. name)
  S.free(name) -- now: it may be submitted again behind this
else
  local ready = total > 0 and complete()
  if total > 0 and h.untold then -- what another has begun to tell is told
    S.unset(name, h, 'untold')
    S.later('retry ' .. name)
  end
  if unfinished and erred then
    S.err(name, h, rec(erred).type, nil, rec(erred).cause or erred)
  else
    for k = 1, unfinished and #released or 0 do
      S.later('revive ' .. released[k])
    end
    if ready and unfinished and not h.reviving then
      S.ready(name, h, h.ahead)
    end
  end
end
return S.done(S.settle_up())
