-- @include callers
-- @include finish
-- @lazy
-- What became of one attempt that executor x had; void where its key names another one.

-- Copies of dependencies that could not be read: `NAME\nWORKER.ATTEMPT\n...`
local function report_missing(value)
  for name, w, attempt in string.gmatch(value, '([^\n]+)\n(%d+)%.(%d+)') do
    local h = rec(name)
    if h and h['w:' .. w] == attempt then
      S.lose(name, h, w, S.went_with(w, 'the copy could not be read'))
    end
  end
end

function S.hand_in(x, worker, name, attempt, status, nbytes, kind, value, names)
  local h, state = rec(name), 'processing e' .. x .. '.' .. attempt
  if not h or h.state ~= state then
    if status == 'memory' and value == '' then
      S.evict(worker, name, attempt)
    end
  elseif status == 'memory' then
    S.remember(name, h, attempt, worker, int(nbytes), kind, value, names)
  elseif status == 'erred' then
    local retries = tonumber(h.retries or 0)
    if retries > 0 then
      S.bump(name, h, 'retries', -1)
      S.again(name, h)
    else
      S.err(name, h, kind, value)
    end
  elseif status == 'missing' then
    report_missing(value)
    S.drain(SLICE)
    if h.state == state then
      S.again(name, h)
    end
  elseif status == 'elsewhere' and not h.missing then
    S.elsewhere(x, name, h)
  else
    if h.class then
      local returned = rawget(S, 'returned') or {}
      returned[x .. ''] = true
      S.returned = returned
    end
    S.again(name, h)
  end
end
