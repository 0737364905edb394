-- @include lane
-- @include freeing
-- Use up a number, in place of a call that a full server refused.
-- KEYS[1] META
-- ARGV[1] header
-- Reply OK 0
if repeated then
  return { 'REPEAT', 0 }
end
return S.done(0)
