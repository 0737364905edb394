-- @include lane
-- @include growing
-- @include eligible
-- @include answers
-- @include quota
-- Choose a worker for each of several values that are about to be scattered, in turn, on the caller's host where one is.
-- KEYS[1] META
-- ARGV[1] header, values, bytes in all, host id of the caller or '', values that may follow, which are placed too where there are
--   no quotas, then names, addresses, hosts or ordinals of workers
-- Reply OK 0 first attempt, then a worker's ordinal for each value | NO workers message | NO quota text
if repeated then
  local reply, kept = { 'REPEAT', 0 }, S.kept_answer()
  if kept[1] == 'quota' or kept[1] == 'workers' then
    return { 'NO', unpack(kept) }
  end
  for _, value in ipairs(kept) do
    reply[#reply + 1] = value
  end
  return reply
end
local over = epoch[8] and S.over_quota(a[BODY + 1])
if over then
  return S.refuse_for_good('quota', over)
end
local count, host = a[BODY] + (epoch[8] and 0 or a[BODY + 3]), a[BODY + 2]
local list = '\n' .. concat(a, '\n', BODY + 4) .. '\n'
local any = #a < BODY + 4
local here, all = {}, {}
local flat = call('HGETALL', P .. 'workers')
for i = 1, #flat, 2 do
  local w = S.caller(flat[i])
  if w and w.inc ~= '' and w.status ~= 'closing' and (any or S.is_named(list, flat[i], w)) then
    all[#all + 1] = tonumber(flat[i])
    if host ~= '' and w.memory == host then
      here[#here + 1] = tonumber(flat[i])
    end
  end
end
local choice = #here > 0 and any and here or all
if #choice == 0 then
  return S.refuse_for_good('workers', any and 'no worker is running' or 'none of these workers is running: ' .. concat(a, ', ', BODY + 4))
end
table.sort(choice)
-- Places ahead may never be used: the next who asks begins with the next worker.
local step = count > a[BODY] and 1 or count
local turn = call('HINCRBY', META, 'placed', step) - step
local answer = { call('HINCRBY', META, 'attempt', count) - count + 1 }
for i = 1, count do
  answer[i + 1] = choice[(turn + i - 1) % #choice + 1]
end
S.keep_answer(answer)
local reply = S.done(0)
for _, value in ipairs(answer) do
  reply[#reply + 1] = value
end
return reply
