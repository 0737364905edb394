-- @include lane
-- @include freeing
-- @include callers
-- @include shared_values
-- Take a variable's value away; who reads it waits until it gets another.
-- KEYS[1] META
-- ARGV[1] header, name
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local id = call('HGET', P .. 'variables', a[BODY])
if id then
  call('HDEL', P .. 'variables', a[BODY])
  S.drop_shared('variable', a[BODY], id)
end
return S.done(S.settle_up())
