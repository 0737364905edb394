-- @include lane
-- @include freeing
-- @include forget
-- Let go of functions that the caller brought; their pickles go with the last user.
-- KEYS[1] META
-- ARGV[1] header, hashes
-- Reply OK 0
if repeated then
  return { 'REPEAT', 0 }
end
for i = BODY, #a do
  if call('SREM', P .. 'functions:' .. ME, a[i]) == 1 then
    S.use_function(a[i], -1)
  end
end
return S.done(S.settle_up())
