-- @include lane
-- @include growing
-- @include callers
-- @include clock
-- @include copies
-- @include answers
-- Copies are to move: the receiver makes one, and then that of the sender goes, if there are enough others.
-- KEYS[1] META
-- ARGV[1] header, then per copy: key, ordinals of the sender and of the receiver
-- Reply OK more how many will
if repeated then
  return { 'REPEAT', 0, S.kept_answer()[1] or 0 }
end
local count = 0
for i = BODY, #a, 3 do
  local name, from, to = a[i], int(a[i + 1]), int(a[i + 2])
  local h = rec(name)
  local _, runs = S.lives(to)
  if h and word(h.state) == 'memory' and h['w:' .. from] and runs and not h['w:' .. to] and not h['c:' .. to] then
    S.plan(name, h, to, from)
    S.fewer(name, h)
    count = count + 1
  end
end
S.keep_answer({ count })
return S.done(S.settle_up(), count)
