-- @include lane
-- @include growing
-- @include callers
-- @include clock
-- @include answers
-- @include quota
-- Make scattered values known, with the caller's references.
-- KEYS[1] META
-- ARGV[1] header, then per value: name, count, attempt, worker (0: inline), nbytes, type, value, flags (1: keep, 2: said again by
--   who registers anew), contained keys and their names
-- Reply OK more, names that were in memory already (their new payloads are dropped) | NO quota text
if repeated then
  local kept = S.kept_answer()
  if kept[1] and kept[1] ~= '' then
    return { 'NO', unpack(kept) }
  end
  return { 'REPEAT', 0, unpack(kept, 2) }
end
local field = 'refs:' .. ME
local held, known = {}, {}

-- A bundle is said again, and not all of what it stands for is known any more: it would keep the rest alone.
local function broken(name, names)
  for _, inside in ipairs(not recovering and sub(name, 1, 9) == '@@bundle@' and names or {}) do
    local h = rec(inside)
    if not h or h.state == 'forgetting' then
      return true
    end
  end
end

local i = BODY
while epoch[7] and i <= #a do -- a name that is still being forgotten cannot come again yet
  if call('HGET', RECORD .. a[i], 'state') == 'forgetting' then
    return { 'WAIT' }
  end
  i = i + 9 + a[i + 8]
end
if epoch[8] then
  local need = 0 -- who registers anew brings what was there before
  i = BODY
  while i <= #a do
    if a[i + 3] > 0 and a[i + 7] < 2 and call('HGET', RECORD .. a[i], 'state') ~= 'memory' then
      need = need + a[i + 4]
    end
    i = i + 9 + a[i + 8]
  end
  local over = need > 0 and S.over_quota(need)
  if over then
    return S.refuse_for_good('quota', over)
  end
end
i = BODY
while i <= #a do
  local name, count, attempt, worker, nbytes, kind, value, flags, n = unpack(a, i, i + 8)
  i = i + 9
  local names
  if n > 0 then
    names = {} -- not by unpack, which takes some 8,000 at most
    for k = i, i + n - 1 do
      names[#names + 1] = a[k]
    end
    i = i + n
  end
  local h = rec(name)
  local state = h and word(h.state)
  -- Who registers anew brings values that tasks computed, too.
  local again = flags >= 2
  local same = again or state == 'memory' and (value ~= '' and S.read_data(name, h) == value or h['w:' .. int(worker)] == int(attempt))
  if again and not h and broken(name, names) then
    S.tell_cancelled(ME, name, 'not all that it contained is known any more')
  elseif h and h.fn and not same then
    S.push(ME, name, 'erred', '0', '0', 'KeyTaken', '', format(
      '!KeyTaken\0the key %s is in use by a task; scatter under another key', name))
    known[#known + 1] = name
  else
    if not h then
      h = { state = 'released' }
      S.create(name, h)
      if epoch[8] then
        S.set(name, h, 'owner', ME)
      end
    end
    if count > 0 then
      sum = sum + count - tonumber(h[field] or 0)
      S.set(name, h, field, int(count))
      held[#held + 1] = name
    end
    if flags % 2 == 1 then
      S.set(name, h, 'keep', '1')
    end
    if state == 'memory' then
      known[#known + 1] = name
      S.tell_one(ME, name, h)
    elseif again and h.fn and not recovering then
      S.later('revive ' .. name) -- somebody else had it computed again meanwhile
    else
      if state == 'queued' then
        S.void(h)
      end
      if attempt == 0 then
        attempt = call('HINCRBY', META, 'attempt', 1)
      end
      if state == 'erred' and not h.cause then
        call('UNLINK', P .. 'error:' .. name)
        if h.fan then
          S.later('rouse 0 ' .. name .. '\n' .. name) -- what erred because this was lost is run again
        end
      end
      S.unset(name, h, 'lost', 'cause', 'spoilt')
      if worker > 0 and call('HEXISTS', P .. 'workers', int(worker)) == 0 then
        S.set(name, h, 'state', 'released', 'nbytes', int(nbytes), 'type', kind, 'lost', S.went_with(int(worker)))
        S.later('revive ' .. name)
      else
        S.remember(name, h, int(attempt), int(worker), int(nbytes), kind, value, names)
      end
    end
    if not wanted(h) then
      S.later('free ' .. name)
    end
  end
  if known[#known] == name and worker > 0 and (not h or h['w:' .. int(worker)] ~= int(attempt)) then
    S.evict(int(worker), name, int(attempt))
  end
end
S.many('SADD', P .. 'holds:' .. ME, held)
if #known > 0 then
  S.keep_answer({ '', unpack(known) })
end
local reply = S.done(S.settle_up())
for _, name in ipairs(known) do
  reply[#reply + 1] = name
end
return reply
