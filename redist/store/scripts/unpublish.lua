-- @include lane
-- @include freeing
-- @include callers
-- @include answers
-- Unpublish a dataset; its version goes when the last reader lets go.
-- KEYS[1] META
-- ARGV[1] header, name
-- Reply OK more | NO unknown name
if repeated then
  return S.refused_before() or { 'REPEAT', 0 }
end
local version = call('HGET', P .. 'datasets', a[BODY])
if not version then
  return S.refuse_for_good('unknown', a[BODY])
end
call('HDEL', P .. 'datasets', a[BODY])
S.withdraw('@' .. a[BODY] .. '@' .. version, 'd')
return S.done(S.settle_up())
