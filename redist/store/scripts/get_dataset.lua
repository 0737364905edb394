-- @include lane
-- @include growing
-- @include callers
-- Read a dataset. A hand-off keeps the version until the request is left, as the reader does when it has bound what it contains.
-- KEYS[1] META
-- ARGV[1] header, name, token
-- Reply OK 0 record value | NO unknown name
local name, token = a[BODY], a[BODY + 1]
if repeated and a[3] < tonumber(epoch[1]) then -- it was refused, or what it read went with the restart
  return { 'OLD', tonumber(epoch[1]) }
end
local record, value = S.read_before(token)
if repeated then
  if record then
    return { 'REPEAT', 0, record, value }
  end
  return { 'NO', 'unknown', name } -- or it has left
end
if not record then
  local version = call('HGET', P .. 'datasets', name)
  record = version and '@' .. name .. '@' .. version
  local h = record and rec(record)
  if not h then
    return S.refuse('unknown', name)
  end
  value = S.read_for(token, record, h)
end
return S.done(0, record, value)
