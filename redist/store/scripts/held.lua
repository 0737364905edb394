-- @include reader
-- Read a slice of what the caller held before it registered under its name, and has not counted again.
-- KEYS[1] META
-- ARGV[1] header, cursor
-- Reply OK next cursor (0: that was the last slice), names
local field = 'refs:' .. int(a[1])
local reply = call('SSCAN', P .. 'stale:' .. int(a[1]), int(a[BODY]), 'COUNT', 1000)
local held = {}
for _, name in ipairs(reply[2]) do
  if call('HEXISTS', RECORD .. name, field) == 1 then
    held[#held + 1] = name
  end
end
return { 'OK', tonumber(reply[1]), unpack(held) }
