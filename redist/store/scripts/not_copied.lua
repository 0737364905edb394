-- @include lane
-- @include freeing
-- @include callers
-- @include clock
-- @include copies
-- A worker cannot make copies that it was asked for: no holder answered, or it has no room.
-- KEYS[1] META
-- ARGV[1] header, keys
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
for i = BODY, #a do
  local h = rec(a[i])
  if h and h['c:' .. ME] then
    S.not_copied(a[i], h, ME)
  end
end
return S.done(S.settle_up())
