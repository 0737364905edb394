-- @include lane
-- @include freeing
-- @include callers
-- @include locks
-- End all requests of this caller that an earlier process of its name made.
-- KEYS[1] META
-- ARGV[1] header, how the tokens of this process begin
-- Reply OK more
if repeated then
  return { 'REPEAT', 0 }
end
S.later('quit 0 ' .. ME .. ' ' .. a[BODY])
return S.done(S.settle_up())
