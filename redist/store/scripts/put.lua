-- @include lane
-- @include callers
-- @include queueing
-- @include answers
-- Put an item into a queue, or wait in line while it is full. Asked again, it says how the request stands.
-- KEYS[1] META
-- ARGV[1] header, token, name, items that the queue may have if it is new, 1 to wait, value, contained keys
-- Reply OK more, 1: it is in, 0: not yet, -1: not, and we do not wait | NO unknown key
local token, name, limit, wait, value = unpack(a, BODY, BODY + 4)
local kind = S.ask(ME, token)
if repeated then
  return S.refused_before() or { 'REPEAT', 0, kind == 'put' and 0 or (kind or wait == 1) and 1 or -1 }
elseif kind then
  call('SREM', P .. 'void', '') -- to ask how it stands adds nothing: a full server lets it through
  return S.done(0, kind == 'put' and 0 or 1)
end
call('HSET', META, 'grown', '1') -- as include/growing.lua
local names, unknown = S.contents(BODY + 5)
if not names then
  return S.refuse_for_good('unknown', unknown)
end
limit = tonumber(call('HGET', P .. 'limits', 'queue ' .. name) or limit)
local room = limit == 0 or call('ZCARD', P .. 'items:' .. name) < limit
if not room and wait == 0 then
  return S.done(0, -1)
end
local id = int(S.asked())
call('HSET', P .. 'limits', 'queue ' .. name, int(limit))
S.keep_value('queue', name, id, value, names)
if room then
  call('ZADD', P .. 'items:' .. name, id, id)
  if wait == 0 then
    S.note(ME, token, 'in', id, { name }) -- so that a repeat finds that it was not full
  end
  S.serve_gets(name)
else
  call('ZADD', P .. 'waits:put ' .. name, id, ME .. ' ' .. token)
  S.note(ME, token, 'put', id, { name })
end
return S.done(S.settle_up(), room and 1 or 0)
