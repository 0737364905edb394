-- @include lane
-- @include freeing
-- @include callers
-- @include queueing
-- Get items of a queue, or wait in line for them. They stay with the server until the request is left with them taken. Asked
-- again, it says how the request stands.
-- KEYS[1] META
-- ARGV[1] header, token, name, items that the queue may have if it is new, most items, 1 to wait
-- Reply OK more, values (none: not yet, or we do not wait)
local token, name, limit, want, wait = unpack(a, BODY, BODY + 4)
local kind, state = S.ask(ME, token)
local values = {}
local function read()
  for id in string.gmatch(state, '%S+') do
    values[#values + 1] = S.shared_value('queue', name, id) or nil
  end
end
if kind == 'got' then
  read()
end
if repeated then
  return { 'REPEAT', 0, unpack(values) }
elseif kind == 'got' and not values[1] then
  S.end_ask(ME, token) -- a restart has forgotten them
  kind = nil
end
if not kind then
  if S.give_items(ME, token, name, want) > 0 then
    kind, state = S.ask(ME, token)
    read()
  elseif wait == 1 then
    call('HSETNX', P .. 'limits', 'queue ' .. name, int(limit))
    call('ZADD', P .. 'waits:get ' .. name, int(S.asked()), ME .. ' ' .. token)
    S.note(ME, token, 'get', int(want), { name })
  end
end
return S.done(S.settle_up(), unpack(values))
