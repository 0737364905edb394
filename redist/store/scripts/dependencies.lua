-- @include reader
-- Read a slice of a task's dependencies.
-- KEYS[1] META
-- ARGV[1] header, name, cursor
-- Reply OK next cursor (0: that was the last slice), names
local reply = call('SSCAN', P .. 'deps:' .. a[BODY], int(a[BODY + 1]), 'COUNT', 1000)
return { 'OK', tonumber(reply[1]), unpack(reply[2]) }
