-- @include lane
-- @include freeing
-- @include answers
-- Keep a plugin no more.
-- KEYS[1] META
-- ARGV[1] header, name
-- Reply OK 0 | NO unknown name
if repeated then
  return S.refused_before() or { 'REPEAT', 0 }
end
if call('HDEL', P .. 'plugins', a[BODY]) == 0 then
  return S.refuse_for_good('unknown', a[BODY])
end
return S.done(0)
