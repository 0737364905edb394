-- @include reader
-- @include outbox
-- Read how keys stand.
-- KEYS[1] META
-- ARGV[1] header, 1 for values and errors of any size, 2 if the caller sent references to all of them, names
-- Reply OK 0, then per name: name, state, attempt, nbytes, type, where, value
local reply = { 'OK', 0 }
local any = 2 ^ 53
-- One that was not taken was refused, or cancelled since; the push that said so was lost.
local mine = a[BODY] == 2 and not recovering and 'refs:' .. format('%d', a[1])
for i = BODY + 1, #a do
  local name = a[i]
  local h = rec(name)
  local n = #reply
  reply[n + 1] = name
  if mine and h and h.fn and not h[mine] and h.state ~= 'forgetting' then
    reply[n + 2], reply[n + 3], reply[n + 4], reply[n + 5], reply[n + 6] = 'erred', '0', '0', 'KeyTaken', ''
    reply[n + 7] = format('!KeyTaken\0the key %s is in use by a task of somebody else; use a key of its own', name)
  elseif h and h.state ~= 'forgetting' then
    local full = a[BODY] == 1
    reply[n + 2], reply[n + 3], reply[n + 4], reply[n + 5], reply[n + 6], reply[n + 7] =
      S.describe(name, h, full and any or PUSH_LIMIT, full and any or ERROR_LIMIT)
  else
    for k = 2, 7 do
      reply[n + k] = k == 2 and 'forgotten' or ''
    end
  end
end
return reply
