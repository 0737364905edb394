-- @include lane
-- @include growing
-- @include callers
-- @include answers
-- @include topics
-- Publish a message under a topic. It stays until all who are subscribed have read it, or too many newer ones have come.
-- KEYS[1] META
-- ARGV[1] header, name, value, contained keys
-- Reply OK more, subscribers | NO unknown key
local MOST = 10000 -- messages of a topic
local name = a[BODY]
local subscribers = call('ZCARD', P .. 'subscribers:' .. name)
if repeated then
  return S.refused_before() or { 'REPEAT', 0, subscribers }
end
local names, unknown = S.contents(BODY + 2)
if not names then
  return S.refuse_for_good('unknown', unknown)
end
if subscribers > 0 then
  local id = int(S.asked())
  S.keep_value('topic', name, id, a[BODY + 1], names)
  call('ZADD', P .. 'topic:' .. name, id, id)
  if call('ZCARD', P .. 'topic:' .. name) > MOST then
    S.drop_shared('topic', name, call('ZPOPMIN', P .. 'topic:' .. name)[1])
  end
  S.later('announce 0 ' .. name)
end
return S.done(S.settle_up(), subscribers)
