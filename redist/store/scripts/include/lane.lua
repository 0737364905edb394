-- @include names
-- Admission to a lane. ARGV[1] is a msgpack list: ordinal, incarnation, generation, n, acknowledged n, then the operation's
-- own items from index BODY. Answers at once what is not to be applied; leaves `repeated` true where n was applied before.
local a = cmsgpack.unpack(ARGV[1])
local BODY = 6
local ME, N = int(a[1]), a[4]
local me = P .. 'caller:' .. ME
local lane = call('HMGET', me, 'inc', 'n', 'sum', 'worker', 'paused', 'claims')
if lane[1] ~= a[2] then
  return { 'UNKNOWN' }
end
local repeated = N <= tonumber(lane[2])
if not repeated and N > lane[2] + 1 then
  return { 'GAP', tonumber(lane[2]) }
end
local epoch = call('HMGET', META, 'generation', 'wiping', 'recovering')
if a[3] < tonumber(epoch[1]) and not repeated then
  call('SREM', P .. 'void', '')
  call('HSET', me, 'n', N)
  return { 'OLD', tonumber(epoch[1]) }
end
if epoch[2] and not repeated and a[3] < 2 ^ 52 then -- 2^52: of no generation
  return { 'WAIT' }
end
local sum = tonumber(lane[3] or 0) -- of this caller's counts
local recovering = epoch[3]

-- Changes to this caller's own sum are stored with n; what concerns another caller is handed back.
function S.own_sum(ordinal, by)
  if ordinal == ME then
    sum = sum + by
    return 0
  end
  return by
end

-- Ends every numbered script: carries out a slice of the work, tells everybody, and stores n last.
function S.done(more, ...)
  call('HSET', me, 'n', N, 'sum', int(sum))
  return { 'OK', more, ... }
end

function S.refuse(code, message)
  call('SREM', P .. 'void', '')
  call('HSET', me, 'n', N)
  return { 'NO', code, message }
end
