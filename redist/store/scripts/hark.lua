-- @include lane
-- @include freeing
-- @include callers
-- @include topics
-- Subscribe to a topic, or read on: messages up to a number have been read, those that follow are answered.
-- KEYS[1] META
-- ARGV[1] header, token, name, number of the last message that was read (0: none yet), 1 to have those that follow
-- Reply OK more, number of the last message that is answered or was read before, values
local MOST, BYTES = 100 * a[BODY + 3], 2 ^ 20 -- of one reply
local token, name, last = a[BODY], a[BODY + 1], a[BODY + 2]
local member = ME .. ' ' .. token
local known = call('ZSCORE', P .. 'subscribers:' .. name, member)
if repeated and not known then
  return { 'REPEAT', 0, last } -- it was left since
elseif not known then
  last = S.asked()
  S.note(ME, token, 'sub', '', { name })
else
  last = math.max(last, tonumber(known))
end
local more = 0
if not repeated then
  call('ZADD', P .. 'subscribers:' .. name, int(last), member)
  S.trim(name)
  more = S.settle_up()
end
local values, bytes = {}, 0
for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'topic:' .. name, '(' .. int(last), '+inf', 'LIMIT', 0, MOST)) do
  if bytes > BYTES then
    break
  end
  local value, size = S.shared_value('topic', name, id)
  last = tonumber(id)
  if value then
    values[#values + 1] = value
    bytes = bytes + size
  end
end
if repeated then
  return { 'REPEAT', 0, last, unpack(values) }
end
return S.done(more, last, unpack(values))
