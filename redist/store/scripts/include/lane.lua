-- @include admission
-- @include parts
-- What the scripts of a lane share.
epoch = epoch or call('HMGET', META, 'generation', 'wiping', 'recovering')
local recovering = epoch[3]
S.me, S.n = ME, N

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
