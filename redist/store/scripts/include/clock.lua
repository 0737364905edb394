-- @include parts
-- @lazy
-- Milliseconds of the server's clock, read once a script.
local clock
function S.now()
  if not clock then
    local t = call('TIME')
    clock = t[1] * 1000 + math.floor(t[2] / 1000)
  end
  return clock
end
