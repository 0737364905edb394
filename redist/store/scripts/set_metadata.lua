-- @include lane
-- @include growing
-- @include fields
-- Set metadata under a name, if what is there still is what the caller saw. Metadata of a known key go with the key.
-- KEYS[1] META
-- ARGV[1] header, name, whether what was seen matters, what was seen ('' for nothing), value
-- Reply OK 0 | NO changed name
local name, matters, seen, value = a[BODY], a[BODY + 1] == 1, a[BODY + 2], a[BODY + 3]
local there = (repeated or matters) and call('HGET', P .. 'metadata', name)
if repeated then
  if there == value then
    return { 'REPEAT', 0 }
  end
  return { 'NO', 'changed', name } -- refused, or set anew since: the caller looks again
end
if matters and seen ~= (there or '') then
  return S.refuse('changed', name)
end
local h = rec(name)
call('HSET', P .. 'metadata', name, value)
if h and not h.meta then
  S.set(name, h, 'meta', '1')
end
return S.done(0)
