-- @include lane
-- @include growing
-- @include callers
-- @include clock
-- Run erred tasks again; their erred dependencies are run again by the same rule.
-- KEYS[1] META
-- ARGV[1] header, names
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
for i = BODY, #a do
  local h = rec(a[i])
  if h and h.state == 'erred' then
    S.later('retry ' .. a[i])
  end
end
return S.done(S.settle_up())
