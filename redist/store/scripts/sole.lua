-- @include reader
-- @include copies
-- Read what of a closing worker's values others have too few copies of, or none, a slice at a time.
-- KEYS[1] META
-- ARGV[1] header, ordinal of the worker, cursor
-- Reply OK 0 next cursor (0: done), how many workers run, how many values of this slice they have too few copies of; and of those
--   that they have no copy of: how many, their bytes, how many cannot be computed again, and the names of some of these
local w = int(a[BODY])
local running = #S.able()
local reply = call('HSCAN', P .. 'has:' .. w, a[BODY + 1], 'COUNT', SLICE)
local flat = reply[2]
local left, count, size, lost, names = 0, 0, 0, 0, {}
for i = 1, #flat, 2 do
  local h = rec(flat[i])
  if h and word(h.state) == 'memory' and h['w:' .. w] == flat[i + 1] then
    local others = S.copies_on(h, w)
    if others < math.min(math.max(running, 1), tonumber(h.copies or 1)) then
      left = left + 1
    end
    if others == 0 then
      count = count + 1
      size = size + tonumber(h.nbytes or 0)
      if not h.data then
        lost = lost + 1
        if #names < 3 then
          names[#names + 1] = flat[i]
        end
      end
    end
  end
end
return { 'OK', 0, reply[1], running, left, count, size, lost, unpack(names) }
