-- @include lane
-- @include freeing
-- @include callers
-- @include clock
-- Read a variable, or wait until it has a value; then it is read again. A hand-off keeps the value until the reader has bound
-- what it contains.
-- KEYS[1] META
-- ARGV[1] header, token, name, 1 to wait
-- Reply OK more record value | OK more (it has none yet, or none and we do not wait)
local token, name, wait = a[BODY], a[BODY + 1], a[BODY + 2]
local id = call('HGET', P .. 'variables', name)
local value, _, h = nil, nil, nil
if id then
  value, _, h = S.shared_value('variable', name, id)
end
if not value then
  local kind = S.ask(ME, token)
  if kind ~= 'wait' and wait == 1 then
    S.wait_in('variable ' .. name, token) -- a repeat too: it had a value then, which the caller never saw
  end
  return repeated and { 'REPEAT', 0 } or S.done(0)
end
local record = S.shared_record('variable', name, id)
-- A repeat takes the hand-off again: the token is the same, and it may be another value by now.
if call('ZADD', P .. 'handoffs', int(S.now() + 300000), token .. ' ' .. record) == 1 then
  S.bump(record, h, 'refs:h', 1)
end
if repeated then
  return { 'REPEAT', 0, record, value }
end
S.end_ask(ME, token)
return S.done(S.settle_up(), record, value)
