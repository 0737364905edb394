-- @include reader
-- @include copies
-- Read how many copies of values there are and will be.
-- KEYS[1] META
-- ARGV[1] header, keys
-- Reply OK 0, then per key: 1 if it is in memory on workers, ordinals of the running workers that have it, how many copies are being
--   made or planned, how many are wanted
local reply = { 'OK', 0 }
for i = BODY, #a do
  local h = rec(a[i])
  local there = h and word(h.state) == 'memory' and S.where(h)
  local holders, coming = {}, 0
  for field in pairs(there and h or {}) do
    local kind, w = match(field, '^([wc]):(%d+)$')
    if kind then
      local _, runs = S.lives(w)
      if kind == 'w' and runs then
        holders[#holders + 1] = w
      elseif kind == 'c' and runs and not h['w:' .. w] then
        coming = coming + 1
      end
    end
  end
  local n = #reply
  reply[n + 1], reply[n + 2], reply[n + 3], reply[n + 4] = there and 1 or 0, concat(holders, ' '), coming, tonumber(h and h.copies or 1)
end
return reply
