-- @include lane
-- @include growing
-- @include callers
-- @include clock
-- @include copies
-- @include answers
-- Say how many copies of values there should be, also of those that are still to come, or which workers should have one.
-- Values in the server itself have no copies.
-- KEYS[1] META
-- ARGV[1] header, wanted copies (0: as before), 1 if there are never to be fewer than before, 2 if it was said to a server that
--   lost its memory since (nothing happens unless this one did, and there are never fewer), copies that are made of one at a time,
--   what is planned now ('' nothing but the number, `workers` copies on `most` of the workers, `hosts` one a host, on `most`
--   hosts), most, workers (0: all) and their names, addresses, hosts or ordinals, then keys
-- Reply OK more | NO workers message
if repeated then
  return S.refused_before() or { 'REPEAT', 0 }
end
local wanted, raise, branching, plan, most, listed = unpack(a, BODY, BODY + 5)
if raise == 2 and not recovering then
  return S.done(S.settle_up())
end
local list = '\n' .. concat(a, '\n', BODY + 6, BODY + 5 + listed) .. '\n'
local chosen = {}
for _, w in ipairs(S.able()) do
  if listed == 0 or S.is_named(list, w, S.caller(w)) then
    chosen[#chosen + 1] = w
  end
end
if #chosen == 0 and plan ~= '' then
  return S.refuse_for_good('workers', listed == 0 and 'no worker is running'
    or 'none of these workers is running: ' .. concat(a, ', ', BODY + 6, BODY + 5 + listed))
end

-- What lies in the same place counts once: a worker, or the memory of a host.
local function place(w)
  return plan == 'hosts' and (S.caller(w).memory or '') or w
end

local function plan_copies(name, h)
  local there, count, taken = {}, 0, {}
  for field in pairs(h) do
    local w = match(field, '^[wc]:(%d+)$')
    if w and S.caller(w) then
      taken[w] = true
      there[place(w)] = true
    end
  end
  local seen = {}
  for _, w in ipairs(chosen) do
    local here = place(w)
    if there[here] and not seen[here] then
      count = count + 1
    end
    seen[here] = true
  end
  for _, w in ipairs(S.by_load(chosen, taken)) do
    if count >= most then
      break
    end
    if not there[place(w)] then
      there[place(w)] = true
      count = count + 1
      S.plan(name, h, w)
    end
  end
end

for i = BODY + 6 + listed, #a do
  local name = a[i]
  local h = rec(name)
  local state = h and word(h.state)
  local there = state == 'memory' and S.where(h)
  if h and (there or state ~= 'memory' and state ~= 'forgetting') then
    local n = raise > 0 and math.max(wanted, tonumber(h.copies or 1)) or wanted
    if n > 1 then
      S.set(name, h, 'copies', int(n))
    elseif n == 1 then
      S.unset(name, h, 'copies')
    end
    if branching ~= 2 then
      S.set(name, h, 'branching', int(branching))
    else
      S.unset(name, h, 'branching')
    end
    if there then
      if plan ~= '' then
        plan_copies(name, h)
      end
      S.fewer(name, h)
    end
  end
end
return S.done(S.settle_up())
