-- @include lane
-- @include freeing
-- @include recover
-- @include clock
-- Keep unfinished tasks wanted until they are finished, whoever lets go.
-- KEYS[1] META
-- ARGV[1] header, names
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
for i = BODY, #a do
  local h = rec(a[i])
  if h and h.state ~= 'memory' and h.state ~= 'erred' and h.state ~= 'forgetting' and not h['refs:0'] then
    S.set(a[i], h, 'refs:0', '1')
    call('SADD', P .. 'holds:0', a[i])
    S.later('revive ' .. a[i])
  end
end
return S.done(S.settle_up())
