-- @include lane
-- @lazy
-- Answers that state cannot give back are kept with their n until a later call acknowledges them.
function S.keep_answer(answer)
  local key = P .. 'answers:' .. ME
  for _, n in ipairs(call('HKEYS', key)) do
    if tonumber(n) <= a[5] then
      call('HDEL', key, n)
    end
  end
  call('HSET', key, N, cmsgpack.pack(answer))
end

function S.kept_answer()
  local answer = call('HGET', P .. 'answers:' .. ME, N)
  return answer and cmsgpack.unpack(answer) or {}
end

-- A refusal that a repeat is to give again, which `refused_before` answers; state may be another by then.
function S.refuse_for_good(...)
  S.keep_answer({ ... })
  return S.refuse(...)
end

function S.refused_before()
  local refused = S.kept_answer()
  return refused[1] and { 'NO', unpack(refused) }
end
