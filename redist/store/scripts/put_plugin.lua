-- @include lane
-- @include growing
-- @include clock
-- @include answers
-- Keep a plugin for the executors of now and later; every one has a number, in whose order they are set up.
-- KEYS[1] META
-- ARGV[1] header, name, whether one that is there stays, pickle
-- Reply OK 0 number (0: there was one, and it stays)
local name = a[BODY]
local there = (repeated or a[BODY + 1] == 1) and call('HGET', P .. 'plugins', name)
if repeated then
  return { 'REPEAT', 0, S.kept_answer()[1] or there and tonumber(match(there, '^%d+')) or 0 }
end
if there then
  S.keep_answer({ 0 })
  return S.done(0, 0)
end
-- Of a server that lost its memory, too, it is another one than before.
local number = math.max(S.now(), (tonumber(call('HGET', META, 'plugin')) or 0) + 1)
call('HSET', META, 'plugin', int(number))
call('HSET', P .. 'plugins', name, int(number) .. ' ' .. a[BODY + 2])
return S.done(0, number)
