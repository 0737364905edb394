-- @include lane
-- @include growing
-- @include callers
-- @include containers
-- @include answers
-- @include quota
-- Publish a dataset: a new version that pins what it contains. An older version stays while readers hold it.
-- KEYS[1] META
-- ARGV[1] header, name, override, value, contained keys
-- Reply OK more version | NO exists version | NO unknown key | NO quota text
if repeated then
  return S.refused_before() or { 'REPEAT', 0, tonumber(call('HGET', P .. 'datasets', a[BODY]) or 0) }
end
local over = epoch[8] and S.over_quota(0)
if over then
  return S.refuse_for_good('quota', over)
end
local name, override, value = a[BODY], a[BODY + 1], a[BODY + 2]
local names, unknown = S.contents(BODY + 3)
if not names then
  return S.refuse_for_good('unknown', unknown)
end
local before = call('HGET', P .. 'datasets', name)
if before and override == 0 then
  return S.refuse_for_good('exists', before)
end
local version = int(call('HINCRBY', META, 'version', 1))
local record = '@' .. name .. '@' .. version
S.keep(record, 'd', 'dataset', value, names)
call('HSET', P .. 'datasets', name, version)
if before then
  S.withdraw('@' .. name .. '@' .. before, 'd')
end
return S.done(S.settle_up(), tonumber(version))
