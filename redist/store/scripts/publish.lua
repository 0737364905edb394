-- @include lane
-- @include growing
-- @include callers
-- Publish a dataset: a new version that pins what it contains. An older version stays while readers hold it.
-- KEYS[1] META
-- ARGV[1] header, name, override, value, contained keys
-- Reply OK more version | NO exists version | NO unknown key
if repeated then
  return { 'REPEAT', 0, tonumber(call('HGET', P .. 'datasets', a[BODY]) or 0) }
end
local name, override, value = a[BODY], a[BODY + 1], a[BODY + 2]
local names = {}
for i = BODY + 3, #a do
  local h = rec(a[i])
  if not h or h.state == 'forgetting' then
    return S.refuse('unknown', a[i])
  end
  names[#names + 1] = a[i]
end
local before = call('HGET', P .. 'datasets', name)
if before and override == 0 then
  return S.refuse('exists', before)
end
local version = int(call('HINCRBY', META, 'version', 1))
local record = '@' .. name .. '@' .. version
local h = { state = 'memory', ['refs:d'] = '1', nbytes = int(#value), type = 'dataset', data = S.data_field(record, value),
  contains = '0' }
call('HSET', RECORD .. record, 'state', h.state, 'refs:d', '1', 'nbytes', h.nbytes, 'type', h.type, 'data', h.data, 'contains', '0')
S.create(record, h)
call('SADD', P .. 'holds:d', record)
S.pin('0 ' .. record, names)
call('HSET', P .. 'datasets', name, version)
if before then
  S.withdraw('@' .. name .. '@' .. before)
end
return S.done(S.settle_up(), tonumber(version))
