-- @include lane
-- @include growing
-- @include fields
-- @include clock
-- Read a dataset. A hand-off keeps the version until the reader has bound what it contains.
-- KEYS[1] META
-- ARGV[1] header, name, token
-- Reply OK 0 record value | NO unknown name
if repeated and a[3] < tonumber(epoch[1]) then -- it was refused, or what it read went with the restart
  return { 'OLD', tonumber(epoch[1]) }
end
local version = call('HGET', P .. 'datasets', a[BODY])
local record = version and '@' .. a[BODY] .. '@' .. version
local h = record and rec(record)
if not h then
  if repeated then
    return { 'NO', 'unknown', a[BODY] }
  end
  return S.refuse('unknown', a[BODY])
end
-- A repeat takes the hand-off again: the token is the same, and it may be another version by now.
if call('ZADD', P .. 'handoffs', int(S.now() + 300000), a[BODY + 1] .. ' ' .. record) == 1 then
  S.bump(record, h, 'refs:h', 1)
end
if not repeated then
  S.done(0)
end
return { repeated and 'REPEAT' or 'OK', 0, record, S.read_data(record, h) }
