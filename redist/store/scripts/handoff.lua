-- @include lane
-- @include growing
-- @include recover
-- @include clock
-- Keep keys wanted for some time under tokens: references that travel where nobody counts them.
-- KEYS[1] META
-- ARGV[1] header, seconds, then pairs: token, name
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local deadline = int(S.now() + 1000 * a[BODY])
for i = BODY + 1, #a, 2 do
  local token, name = a[i], a[i + 1]
  local h = rec(name)
  if h and h.state ~= 'forgetting' and call('ZADD', P .. 'handoffs', deadline, token .. ' ' .. name) == 1 then
    S.bump(name, h, 'refs:h', 1)
    S.later('revive ' .. name)
  end
end
return S.done(S.settle_up())
