-- @include lane
-- @include freeing
-- @include callers
-- @include cancelling
-- Drop the caller's references to keys and to what depends on them; what nobody else wants stops and is forgotten.
-- With force everybody's references go, and their Futures are cancelled.
-- KEYS[1] META
-- ARGV[1] header, force, reason, names
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
for i = BODY + 2, #a do
  S.later(concat({ 'cancel', ME, int(a[BODY]), (string.gsub(a[BODY + 1], '%s+', ' ')) .. '\n' .. a[i] }, ' '))
end
return S.done(S.settle_up())
