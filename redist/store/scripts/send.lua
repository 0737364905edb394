-- @include reader
-- @include growing
-- @include publish
-- Put a message into the inboxes of callers that are registered, and tell them to look.
-- KEYS[1] META
-- ARGV[1] header, message, ordinals
-- Reply OK 0 ordinals reached
local reached = {}
for i = BODY + 1, #a do
  local ordinal = int(a[i])
  local inc = call('HGET', P .. 'caller:' .. ordinal, 'inc')
  if inc and inc ~= '' then
    call('RPUSH', P .. 'inbox:' .. ordinal, a[BODY])
    S.publish('to:' .. ordinal, { 'c' })
    reached[#reached + 1] = a[i]
  end
end
return { 'OK', 0, unpack(reached) }
