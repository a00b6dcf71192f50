#!/bin/busybox sh
# The first process of the machine: makes a root out of the other machine's files, and runs the tests in it. Whatever is
# written stays in memory.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "/modules/$module" || echo "cannot load $module" >/dev/console
done </modules/order

mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host || exit
mount -t tmpfs tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /root || exit
for folder in tmp run var/tmp; do
    mount -t tmpfs tmpfs "/root/$folder"
done
while read -r folder; do
    mkdir -p "/root$folder"
    mount -o bind "/host$folder" "/root$folder"
done </shared
mkdir -p /root/lib/modules
mount -o bind "/host$(cat /modules/folder)" /root/lib/modules
for folder in proc sys dev; do
    mount -o move "/$folder" "/root/$folder"
done
mkdir /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm
# By which bash hands wg-quick's tools their input.
ln -s /proc/self/fd /root/dev/fd
cp /tests /finish /root/run/
exec switch_root /root /bin/sh /run/finish
