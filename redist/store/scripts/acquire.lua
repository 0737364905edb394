-- @include lane
-- @include callers
-- @include locks
-- @include answers
-- Ask for a lock, for a lease of a semaphore, or for several locks at once. Asked again, it says how the request stands.
-- KEYS[1] META
-- ARGV[1] header, token, leases, how (0: the semaphore must be open, 1: open it, 2: nobody opens it, it is known while it is in use), 1 to wait, how
--   many of the names are needed (0: only open it), names
-- Reply OK more, how many are still missing (0: granted, -1: not to be had without waiting) | NO limit leases | NO closed name
local token, leases, how, wait, need = unpack(a, BODY, BODY + 4)
local kind, missing = S.ask(ME, token)
if repeated then
  return S.refused_before() or { 'REPEAT', 0, tonumber(missing or need == 0 and 0 or -1) }
elseif kind then
  call('SREM', P .. 'void', '') -- to ask how it stands adds nothing: a full server lets it through
  return S.done(0, tonumber(missing))
end
call('HSET', META, 'grown', '1') -- as include/growing.lua
local names = {}
for i = BODY + 5, #a do
  names[#names + 1] = a[i]
  local limit = tonumber(call('HGET', P .. 'limits', 'lock ' .. a[i]))
  if how == 0 and not (limit and limit > 0) then
    return S.refuse_for_good('closed', a[i])
  elseif limit and math.abs(limit) ~= leases then -- below 0: closed, but some still hold it or wait
    return S.refuse_for_good('limit', int(math.abs(limit)))
  end
end
if how == 1 then
  S.open('lock', names[1], leases)
elseif how == 2 and need > 0 then
  for _, name in ipairs(names) do
    call('HSET', P .. 'limits', 'lock ' .. name, int(leases))
  end
end
missing = need > 0 and S.line_up(token, need, wait, names) or 0
return S.done(S.settle_up(), missing)
