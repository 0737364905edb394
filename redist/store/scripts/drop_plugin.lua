-- @include lane
-- @include freeing
-- Keep a plugin no more.
-- KEYS[1] META
-- ARGV[1] header, name
-- Reply OK 0 | NO unknown name
if repeated then
  return { 'REPEAT', 0 }
end
if call('HDEL', P .. 'plugins', a[BODY]) == 0 then
  return S.refuse('unknown', a[BODY])
end
return S.done(0)
