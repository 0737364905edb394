-- @include callers
-- @lazy
-- A restart forgets everything: all references go, and the memory rule does the rest. Meanwhile lanes answer WAIT.

function S.wipe(ordinal)
  local names = S.held(ordinal)
  local field = 'refs:' .. ordinal
  for _, name in ipairs(names) do
    local h = rec(name)
    if h and h[field] then
      S.let_go(name, h, field)
    end
  end
  if #names == SLICE then
    S.later('wipe ' .. ordinal)
  elseif call('EXISTS', P .. 'caller:' .. ordinal) == 1 then -- it may be gone by now
    call('HSET', P .. 'caller:' .. ordinal, 'sum', '0')
  end
  return 1 + 3 * #names
end

-- The last item of the newest restart: it waits until nothing else is on the list.
function S.wiped(generation)
  if call('HGET', META, 'generation') ~= generation then
    return 1
  end
  if first <= last or call('EXISTS', P .. 'work') == 1 then
    S.later('wiped ' .. generation)
    return SLICE
  end
  call('HDEL', META, 'wiping')
  return 1
end

-- What was put off until a lease had passed after a loss of writes is put off no more.
function S.undefer()
  local deferred = call('LPOP', P .. 'deferred', SLICE) or {}
  for _, item in ipairs(deferred) do
    S.later(item)
  end
  if #deferred == SLICE then
    S.later('undefer -')
  end
  return 1 + #deferred
end

-- Hand-offs are forgotten with their keys.
function S.hand_back()
  local members = call('ZPOPMIN', P .. 'handoffs', SLICE)
  for i = 1, #members, 2 do
    local name = match(members[i], '^%S+ (.*)$')
    local h = rec(name)
    if h and h['refs:h'] then
      S.let_go(name, h, 'refs:h')
    end
  end
  if #members == 2 * SLICE then
    S.later('hand_back -')
  end
  return 1 + 2 * #members
end
