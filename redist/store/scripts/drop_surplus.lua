-- @include lane
-- @include freeing
-- @include callers
-- @include clock
-- @include copies
-- @include answers
-- A worker that is short of memory asks which of its copies may go: those of which other running workers have as many as are
-- wanted, and one at least. They are its copies no more, and it may unlink their files. None may while workers register anew
-- after the server lost writes: what it says of the others may be from before they dropped theirs.
-- KEYS[1] META
-- ARGV[1] header, then pairs: name, attempt
-- Reply OK more, then per pair: 1 if it may go
if repeated then
  local reply = { 'REPEAT', 0 }
  for _, value in ipairs(S.kept_answer()) do
    reply[#reply + 1] = value
  end
  return reply
end
local answer, any = {}, false
for i = BODY, #a, 2 do
  local name = a[i]
  local h = rec(name)
  local goes = not recovering and h and h['w:' .. ME] == int(a[i + 1]) and word(h.state) == 'memory'
    and S.copies_on(h, ME) >= tonumber(h.copies or 1)
  if goes then
    S.drop_copy(name, h, ME)
    any = true
  end
  answer[#answer + 1] = goes and 1 or 0
end
if any then
  S.keep_answer(answer)
end
local reply = S.done(S.settle_up())
for _, value in ipairs(answer) do
  reply[#reply + 1] = value
end
return reply
