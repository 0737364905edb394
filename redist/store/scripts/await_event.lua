-- @include lane
-- @include callers
-- Wait for an event. Asked again, it says how the request stands.
-- KEYS[1] META
-- ARGV[1] header, token, name, 1 to wait
-- Reply OK more, 1: it is set, or was since we asked; 0: not yet; -1: not, and we do not wait
local token, name, wait = a[BODY], a[BODY + 1], a[BODY + 2]
local kind = S.ask(ME, token)
-- A repeat finds nothing where it was answered at once, whatever has become of the event since.
local set = kind == 'done' or not kind and (repeated and wait == 1 or call('SISMEMBER', P .. 'events', name) == 1)
local answer = set and 1 or (kind or wait == 1) and 0 or -1
if repeated then
  return { 'REPEAT', 0, answer }
elseif answer == 0 and not kind then
  call('HSET', META, 'grown', '1') -- as include/growing.lua
  S.wait_in('event ' .. name, token)
else
  call('SREM', P .. 'void', '')
end
return S.done(0, answer)
