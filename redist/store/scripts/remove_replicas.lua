-- @include lane
-- @include freeing
-- @include callers
-- @include clock
-- A worker does not have copies any more. What was the last copy of a wanted value is computed again, or lost.
-- KEYS[1] META
-- ARGV[1] header, then pairs: name, attempt
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local what = 'its file on worker ' .. (call('HGET', me, 'name') or ME)
for i = BODY, #a, 2 do
  local name = a[i]
  local h = rec(name)
  if h and h['w:' .. ME] == int(a[i + 1]) then
    S.lose(name, h, ME, what)
  else
    if call('HGET', P .. 'has:' .. ME, name) == int(a[i + 1]) then
      call('HDEL', P .. 'has:' .. ME, name)
    end
  end
end
return S.done(S.settle_up())
