-- @include lane
-- @include freeing
-- @include callers
-- @include clock
-- A worker does not have copies any more. What was the last copy of a wanted value is computed again, or lost: at once, and in
-- these words, where its file was damaged or gone.
-- KEYS[1] META
-- ARGV[1] header, then triples: name, attempt, what is wrong with its file (empty: the worker has dropped it)
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
local what = 'its file on worker ' .. (call('HGET', me, 'name') or ME)
for i = BODY, #a, 3 do
  local name = a[i]
  local h = rec(name)
  if h and h['w:' .. ME] == int(a[i + 1]) then
    S.lose(name, h, ME, what, a[i + 2] ~= '' and a[i + 2] or nil)
  else
    if call('HGET', P .. 'has:' .. ME, name) == int(a[i + 1]) then
      call('HDEL', P .. 'has:' .. ME, name)
    end
  end
end
return S.done(S.settle_up())
