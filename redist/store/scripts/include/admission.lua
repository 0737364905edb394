-- @include names
-- @first
-- Admission to a lane. ARGV[1] is a msgpack list: ordinal, incarnation, generation, n, acknowledged n, then the operation's
-- own items from index BODY. Answers at once what is not to be applied; leaves `repeated` true where n was applied before.
local a = cmsgpack.unpack(ARGV[1])
local BODY = 6
local ME, N = format('%d', a[1]), a[4]
local me = P .. 'caller:' .. ME
local lane = call('HMGET', me, 'inc', 'n', 'sum', 'worker', 'paused', 'claims')
if lane[1] ~= a[2] then
  return { 'UNKNOWN' }
end
local repeated = N <= tonumber(lane[2])
if not repeated and N > lane[2] + 1 then
  return { 'GAP', tonumber(lane[2]) }
end
local sum = tonumber(lane[3] or 0) -- of this caller's counts
local epoch
if a[3] < 2 ^ 52 then -- 2^52: of no generation
  epoch = call('HMGET', META, 'generation', 'wiping', 'recovering', 'attempt', 'enqueued', 'keys', 'forgetting', 'quotas')
  if not repeated and a[3] < tonumber(epoch[1]) then
    call('SREM', P .. 'void', '')
    call('HSET', me, 'n', N)
    return { 'OLD', tonumber(epoch[1]) }
  elseif not repeated and epoch[2] then
    return { 'WAIT' }
  end
end
