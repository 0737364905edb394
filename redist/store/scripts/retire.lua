-- @include lane
-- @include freeing
-- @include callers
-- @include clock
-- @include copies
-- @include status
-- Workers are closing: they get no more tasks, and others make copies of what only they have. One that is told so by another
-- caller stays that until it ends. Said again, it looks again at what the worker has.
-- KEYS[1] META
-- ARGV[1] header, 1 if they end when nothing is left to be done, ordinals
-- Reply OK more ordinals of those that live
local found = {}
for i = BODY + 1, #a do
  local w = int(a[i])
  local c = S.caller(w)
  if c and c.kind == 'worker' and c.inc ~= '' then
    found[#found + 1] = a[i]
    if not repeated then
      if c.status ~= 'closing' then
        S.set_status(w, 'closing')
      end
      S.later('spare 0 ' .. w)
      if w ~= ME then
        call('HSET', P .. 'caller:' .. w, 'retired', '1')
        call('RPUSH', P .. 'inbox:' .. w, cmsgpack.pack({ 'retire', a[BODY] }))
        S.publish('to:' .. w, { 'c' })
      end
    end
  end
end
if repeated then
  return { 'REPEAT', 0, unpack(found) }
end
return S.done(S.settle_up(), unpack(found))
