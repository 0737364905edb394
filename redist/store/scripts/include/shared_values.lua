-- @include coordination
-- @include containers
-- @include reading
-- @lazy
-- Values of variables, queues and topics: each is a record `@@KIND@NAME@ID` that holds its Futures as any container does, and
-- is held by `refs:c` until it is taken, replaced or deleted.

function S.shared_record(kind, name, id)
  return '@@' .. kind .. '@' .. name .. '@' .. id
end

function S.keep_value(kind, name, id, data, names)
  S.keep(S.shared_record(kind, name, id), 'c', kind, data, names)
end

function S.drop_shared(kind, name, id)
  S.withdraw(S.shared_record(kind, name, id), 'c')
end

-- The value, its size and its record, or nothing: a restart forgets all of them.
function S.shared_value(kind, name, id)
  local record = S.shared_record(kind, name, id)
  local h = rec(record)
  if h and h['refs:c'] then
    return S.read_data(record, h), tonumber(h.nbytes), h
  end
end
