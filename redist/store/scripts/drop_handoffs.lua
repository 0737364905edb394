-- @include lane
-- @include freeing
-- @include callers
-- End hand-offs before their time.
-- KEYS[1] META
-- ARGV[1] header, then pairs: token, name
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
for i = BODY, #a, 2 do
  S.drop_handoff(a[i] .. ' ' .. a[i + 1])
end
return S.done(S.settle_up())
