-- @include outbox
-- Long work in slices. An item is text, `VERB ARGUMENT`, and re-checks state when its turn comes, so that it may come late
-- or twice. What a script does not get to goes to the namespace's work list; whoever is told so sends `continue`.
local items, first, last = {}, 1, 0
local queue_only -- what becomes ready is queued even if an executor is idle
local unserved   -- a queue has good entries that idle executors did not get to

function S.later(item)
  last = last + 1
  items[last] = item
end

function S.drain(limit)
  while first <= last and limit > 0 do
    local item = items[first]
    items[first] = nil
    first = first + 1
    local verb, argument = match(item, '^(%S+) (.*)$')
    limit = limit - (S[verb](argument, limit) or 1)
  end
end

-- Carry out a slice, put away the rest, send what is to be told. Returns 1 where work is left. The first `popped` items come
-- from the work list: what is left of them goes back to its front, so that work is carried out in order.
function S.settle_up(limit, popped)
  S.drain(limit or SLICE)
  local more = 0
  if first <= last then
    for i = popped or 0, first, -1 do
      call('LPUSH', P .. 'work', items[i])
    end
    for i = math.max(first, (popped or 0) + 1), last, CHUNK do -- not by the list's length, which is not defined once its head is nil
      call('RPUSH', P .. 'work', unpack(items, i, math.min(i + CHUNK - 1, last)))
    end
    more = 1
  end
  for i = #closers, 1, -1 do
    closers[i]()
  end
  flush_gone()
  if born ~= 0 then
    call('HINCRBY', META, 'keys', born)
    born = 0
  end
  return more
end
