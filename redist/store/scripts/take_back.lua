-- @include lane
-- @include freeing
-- @include callers
-- @include take
-- @include clock
-- A worker takes back tasks that one of its executors has been given and certainly will not start.
-- KEYS[1] META
-- ARGV[1] header, executor, then pairs: name, attempt
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local x = int(a[BODY])
if call('SISMEMBER', P .. 'executors:' .. ME, x) == 1 then
  for i = BODY + 1, #a, 2 do
    local name, h = a[i], rec(a[i])
    if h and h.state == 'processing e' .. x .. '.' .. int(a[i + 1]) then
      S.again(name, h)
    end
  end
end
return S.done(S.settle_up())
