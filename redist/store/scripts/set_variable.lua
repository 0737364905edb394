-- @include lane
-- @include growing
-- @include callers
-- @include answers
-- @include shared_values
-- Give a variable a value. What it had before goes when its last reader lets go.
-- KEYS[1] META
-- ARGV[1] header, name, value, contained keys
-- Reply OK more | NO unknown key
if repeated then
  return S.refused_before() or { 'REPEAT', 0 }
end
local name = a[BODY]
local names, unknown = S.contents(BODY + 2)
if not names then
  return S.refuse_for_good('unknown', unknown)
end
local id = int(S.asked())
local before = call('HGET', P .. 'variables', name)
S.keep_value('variable', name, id, a[BODY + 1], names)
call('HSET', P .. 'variables', name, id)
if before then
  S.drop_shared('variable', name, before)
end
if call('EXISTS', P .. 'waits:variable ' .. name) == 1 then
  S.later('wake ' .. id .. ' variable ' .. name)
end
return S.done(S.settle_up())
