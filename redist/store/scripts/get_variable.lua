-- @include lane
-- @include freeing
-- @include callers
-- Read a variable, or wait until it has a value; then it is read again. A hand-off keeps the value until the request is left,
-- as the reader does when it has bound what it contains.
-- KEYS[1] META
-- ARGV[1] header, token, name, 1 to wait
-- Reply OK more record value | OK more (it has none yet, or none and we do not wait)
local token, name, wait = a[BODY], a[BODY + 1], a[BODY + 2]
local record, value = S.read_before(token)
if repeated then
  return { 'REPEAT', 0, record, value } -- none: it waits in line, or it has left
elseif record then
  return S.done(0, record, value)
end
local id = call('HGET', P .. 'variables', name)
record = id and S.shared_record('variable', name, id)
local h = record and rec(record)
if not h or not h['refs:c'] then
  if wait == 1 and S.ask(ME, token) ~= 'wait' then
    S.wait_in('variable ' .. name, token)
  end
  return S.done(0)
end
S.end_ask(ME, token)
value = S.read_for(token, record, h)
return S.done(S.settle_up(), record, value)
