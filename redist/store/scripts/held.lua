-- @include reader
-- @include freeing
-- @include callers
-- @include clock
-- Read a slice of what the caller held before it registered under its name, and has not counted again.
-- KEYS[1] META
-- ARGV[1] header, cursor
-- Reply OK next cursor (0: that was the last slice), names
local ME = int(a[1])
local field = 'refs:' .. ME
local reply = call('SSCAN', P .. 'stale:' .. ME, int(a[BODY]), 'COUNT', 1000)
local held = {}
for _, name in ipairs(reply[2]) do
  local v = call('HMGET', RECORD .. name, field, 'linking')
  if v[1] then
    held[#held + 1] = name
  end
  if v[2] == ME then -- who submitted it told some of its dependencies, and is gone
    S.abandon('1 ' .. name) -- now: the name may be submitted again behind this
  end
end
S.settle_up()
return { 'OK', tonumber(reply[1]), unpack(held) }
