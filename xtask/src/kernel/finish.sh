# The first process from then on: runs the tests, tells their exit code and turns the machine off.
output=$(echo /dev/vport*p1)
result=$(echo /dev/vport*p2)
sh /run/tests </dev/null >"$output" 2>&1
echo $? >"$result"
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
