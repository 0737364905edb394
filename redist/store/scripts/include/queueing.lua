-- @include shared_values
-- @lazy
-- Queues. items:NAME has the ids of the items in the order in which they were put; an id is the number of the request. Gets
-- wait while there is none, puts while it is full, both in the order of asking. What was got stays, with whoever got it,
-- until it is taken; else it goes back to its place.
local BYTES = 2 ^ 20 -- that one reply brings, and one item more

local function limit_of(name)
  return tonumber(call('HGET', P .. 'limits', 'queue ' .. name) or 0)
end

-- Items from the front: their ids, nothing if there are none.
local function pop(name, want)
  local ids, bytes = {}, 0
  while #ids < want and bytes < BYTES do
    local popped = call('ZPOPMIN', P .. 'items:' .. name)
    if not popped[1] then
      break
    end
    local _, size = S.shared_value('queue', name, popped[1])
    if size then
      ids[#ids + 1] = popped[1]
      bytes = bytes + size
    end
  end
  return ids[1] and ids
end

-- Waiting puts, as far as there is room.
function S.admit(name)
  local limit = limit_of(name)
  for _ = 1, SLICE do
    local member = call('ZRANGE', P .. 'waits:put ' .. name, 0, 0)[1]
    if not member or limit > 0 and call('ZCARD', P .. 'items:' .. name) >= limit then
      return 1
    end
    local ordinal, token = match(member, '^(%d+) (.*)$')
    local _, id = S.ask(ordinal, token)
    call('ZREM', P .. 'waits:put ' .. name, member)
    if S.shared_value('queue', name, id) then
      call('ZADD', P .. 'items:' .. name, id, id)
    end
    S.note(ordinal, token, 'in', id, { name })
    S.hear(ordinal, token)
  end
  S.later('admit ' .. name)
  return SLICE
end

-- Up to `want` items for a request: how many, 0 if there are none.
function S.give_items(ordinal, token, name, want)
  local limit = int(limit_of(name))
  local ids = pop(name, want)
  if not ids then
    return 0
  end
  S.note(ordinal, token, 'got', concat(ids, ' '), { name, limit })
  S.admit(name)
  S.settle_limit('queue', name)
  return #ids
end

-- Items for those who wait.
function S.serve_gets(name)
  while call('EXISTS', P .. 'items:' .. name) == 1 do
    local member = call('ZRANGE', P .. 'waits:get ' .. name, 0, 0)[1]
    if not member then
      return
    end
    local ordinal, token = match(member, '^(%d+) (.*)$')
    local _, want = S.ask(ordinal, token)
    if S.give_items(ordinal, token, name, tonumber(want)) > 0 then
      call('ZREM', P .. 'waits:get ' .. name, member)
      S.hear(ordinal, token)
      S.settle_limit('queue', name)
    end
  end
end

function S.leave_get(ordinal, token, _, names)
  call('ZREM', P .. 'waits:get ' .. names[1], ordinal .. ' ' .. token)
  S.settle_limit('queue', names[1])
end

function S.leave_got(_, _, state, names, taken)
  local name = names[1]
  for id in string.gmatch(state, '%S+') do
    if taken then
      S.drop_shared('queue', name, id)
    elseif S.shared_value('queue', name, id) then
      call('HSETNX', P .. 'limits', 'queue ' .. name, names[2])
      call('ZADD', P .. 'items:' .. name, id, id)
    end
  end
  if not taken then
    S.serve_gets(name)
  end
end

function S.leave_put(ordinal, token, id, names)
  call('ZREM', P .. 'waits:put ' .. names[1], ordinal .. ' ' .. token)
  S.drop_shared('queue', names[1], id)
  S.settle_limit('queue', names[1])
end

function S.leave_in(_, _, id, names, taken)
  if taken then
    return
  elseif call('ZREM', P .. 'items:' .. names[1], id) == 0 then
    return true -- somebody got it
  end
  S.drop_shared('queue', names[1], id)
  S.admit(names[1])
  S.settle_limit('queue', names[1])
end

-- As work, `NUMBER NAME`: items that were put up to then go.
function S.empty(argument)
  local number, name = match(argument, '^(%d+) (.*)$')
  local ids = call('ZRANGEBYSCORE', P .. 'items:' .. name, '-inf', number, 'LIMIT', 0, SLICE)
  S.many('ZREM', P .. 'items:' .. name, ids)
  for _, id in ipairs(ids) do
    S.drop_shared('queue', name, id)
  end
  if #ids == SLICE then
    S.later('empty ' .. argument)
  else
    S.admit(name)
    S.serve_gets(name)
  end
  S.settle_limit('queue', name)
  return 1 + 3 * #ids
end

-- As work, `CURSOR`, behind a restart that has forgotten all values: queues are empty.
function S.purge(cursor)
  if call('EXISTS', P .. 'holds:c') == 1 then
    S.later('purge ' .. cursor)
    return SLICE
  end
  local reply = call('HSCAN', P .. 'limits', cursor, 'COUNT', SLICE)
  for i = 1, #reply[2], 2 do
    local name = match(reply[2][i], '^queue (.*)$')
    if name then
      call('UNLINK', P .. 'items:' .. name)
      S.admit(name)
      S.settle_limit('queue', name)
    end
  end
  if reply[1] ~= '0' then
    S.later('purge ' .. reply[1])
  end
  return 1 + 3 * #reply[2]
end
