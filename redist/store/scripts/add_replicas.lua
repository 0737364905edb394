-- @include lane
-- @include growing
-- @include callers
-- @include clock
-- A worker has copies: fetched from another, or found when it registers anew. Copies of no present attempt are evicted.
-- After the server lost writes a copy may be the first word of its key, which then waits for who wants it.
-- KEYS[1] META
-- ARGV[1] header, then pairs: name, attempt
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
for i = BODY, #a, 2 do
  local name, attempt = a[i], int(a[i + 1])
  local h = rec(name)
  local current = false
  if h and word(h.state) == 'memory' then
    for f, value in pairs(h) do
      if sub(f, 1, 2) == 'w:' and value == attempt then
        current = true
      end
    end
  elseif recovering and (not h or h.state == 'released') then
    if not h then
      h = S.placeholder(name)
    else
      call('RPUSH', P .. 'deferred', 'free ' .. name)
    end
    S.remember(name, h, attempt, ME, h.nbytes or '0', h.type or '', '', nil)
  end
  if current then
    S.set(name, h, 'w:' .. ME, attempt)
    call('HSET', P .. 'has:' .. ME, name, attempt)
  elseif not (h and h['w:' .. ME] == attempt) then
    S.evict(ME, name, attempt)
  end
end
return S.done(S.settle_up())
